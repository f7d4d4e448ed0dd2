# MALT with its flows: `docker compose up --build` makes a whole service of it (see compose.yaml), and
# `docker run --rm -v malt:/data malt malt run configs/quickstart.toml` one dataset.
FROM python:3.11-slim-bookworm

# The embedded model's runtime links OpenMP.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libgomp1 \
  && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 1000 --create-home malt \
  && python -m venv /opt/venv \
  && mkdir /data \
  && chown malt /data

WORKDIR /opt/malt
COPY constraints.txt pyproject.toml README.md LICENSE malt_implementation.py ./
COPY malt malt
COPY prompts prompts
RUN awk '/^#/ {on = index($0 " ", " service ")} on' constraints.txt > /tmp/service.txt \
  && pip install --require-hashes --no-deps --only-binary :all: --requirement /tmp/service.txt \
  && pip install --no-deps --no-build-isolation --editable .
COPY tasks tasks
COPY flows flows
COPY configs configs
COPY prefect.yaml ./

USER 1000
ENV MALT_DATA_DIR=/data
VOLUME /data
CMD ["malt", "--help"]
