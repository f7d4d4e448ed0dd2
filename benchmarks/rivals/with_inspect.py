"""inspect_ai's scoring of answers from `malt serve`; started by `python -m benchmarks.serving --inspect PYTHON`.

Takes a question file; MALT_BASE_URL and MALT_API_KEY name the server, MODEL the model. The last line of its output
is JSON: version, accuracy, and the number of scored answers.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

from inspect_ai import Task
from inspect_ai import eval as run
from inspect_ai.dataset import Sample
from inspect_ai.scorer import match
from inspect_ai.solver import generate


def main(questions: str) -> None:
    """Ask each question once, and compare the last number of the answer."""
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    samples = [Sample(input=row["question"], target=row["answer"], id=row["id"]) for row in rows]
    task = Task(dataset=samples, solver=generate(), scorer=match(numeric=True))
    [log] = run(task, model=os.environ["MODEL"], display="none", log_dir="logs")
    assert log.results is not None, log.error
    [scored] = log.results.scores
    figures = {"accuracy": scored.metrics["accuracy"].value, "questions": scored.scored_samples}
    print(json.dumps({"version": version("inspect_ai"), **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
