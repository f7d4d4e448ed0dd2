"""The trees of `benchmarks.bare_loop` with Data Designer; started by `python -m benchmarks.throughput --rivals FOLDER`.

It fills columns of rows, and a row cannot become several: one dataset for each role, seeded three times with the
parents' rows, so siblings are separate requests (three times the requests of the others).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ |= {"NEMO_TELEMETRY_ENABLED": "false", "DATA_DESIGNER_HOME": tempfile.mkdtemp()}

import pandas as pd
from data_designer.config import (
    ChatCompletionInferenceParams,
    DataDesignerConfigBuilder,
    DataFrameSeedSource,
    LLMTextColumnConfig,
    ModelConfig,
    ModelProvider,
)
from data_designer.interface import DataDesigner

SAMPLES = 3


def main(url: str, questions: str, in_flight: str, file: str, prompts: str) -> None:
    """Read the questions, and write a line a leaf."""
    provider = ModelProvider(name="loopback", endpoint=url, api_key="none")
    rows = pd.DataFrame(
        {"question": [json.loads(line)["question"] for line in Path(questions).read_text().splitlines()]}
    )
    for name, output in [("generator", "solution"), ("verifier", "verification"), ("refiner", "refined")]:
        seed = rows.loc[rows.index.repeat(SAMPLES)].reset_index(drop=True)
        parameters = ChatCompletionInferenceParams(
            temperature=0.3, max_tokens=1024, max_parallel_requests=int(in_flight)
        )
        model = ModelConfig(
            alias=name, model=name, provider="loopback", inference_parameters=parameters, skip_health_check=True
        )
        builder = DataDesignerConfigBuilder(model_configs=[model])
        builder.with_seed_dataset(DataFrameSeedSource(df=seed))
        folder = Path(prompts) / name
        builder.add_column(
            LLMTextColumnConfig(
                name=output,
                model_alias=name,
                system_prompt=(folder / "system.md").read_text(),
                prompt=(folder / "user.md").read_text(),
            )
        )
        with tempfile.TemporaryDirectory() as artifacts:
            designer = DataDesigner(artifact_path=artifacts, model_providers=[provider])
            rows = designer.create(builder, num_records=len(seed)).load_dataset()
    rows.to_json(file, orient="records", lines=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
