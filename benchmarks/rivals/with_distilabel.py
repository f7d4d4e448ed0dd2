"""The trees of `benchmarks.bare_loop` with distilabel; started by `python -m benchmarks.throughput --rivals FOLDER`.

One `TextGeneration` step for each role, `num_generations` siblings in one request, a row for each sibling; its cache
is off. A step has one batch of requests in flight: the batch is as large as the in-flight limit.
"""

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

SAMPLES = 3


def main(url: str, questions: str, in_flight: str, file: str, prompts: str) -> None:
    """Read the questions, and write a line a leaf."""
    batch = int(in_flight)

    def role(name: str, output: str, *columns: str) -> TextGeneration:
        folder = Path(prompts) / name
        return TextGeneration(
            name=name,
            llm=OpenAILLM(
                model=name,
                base_url=url,
                api_key="none",
                generation_kwargs={"max_new_tokens": 1024, "temperature": 0.3},
            ),
            system_prompt=(folder / "system.md").read_text(),
            template=(folder / "user.md").read_text(),
            columns=list(columns),
            num_generations=SAMPLES,
            input_batch_size=batch,
            output_mappings={"generation": output, "model_name": f"{name}_model"},
            add_raw_output=False,
            add_raw_input=False,
        )

    rows = [{"question": json.loads(line)["question"]} for line in Path(questions).read_text().splitlines()]
    with Pipeline(name="trees") as pipeline:
        (
            LoadDataFromDicts(data=rows, batch_size=batch)
            >> role("generator", "solution", "question")
            >> role("verifier", "verification", "question", "solution")
            >> role("refiner", "refined", "question", "solution", "verification")
        )
    pipeline.run(use_cache=False)["default"]["train"].to_json(file)


if __name__ == "__main__":
    main(*sys.argv[1:])
