"""`configs/paper/`: the settings are the paper's, and a plan counts what the paper's trees have."""

import json
from pathlib import Path
from typing import Any

import pytest

from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.config.settings import Settings
from malt.engine.job import read_job
from malt.engine.plan import plan
from malt.llm.store.samples import Store

FOLDER = Path(__file__).parents[2] / "configs/paper"
CHOICES = {"label": ["A", "B", "C"], "text": ["bank", "library", "attic"]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": f"What is 3 and {n}?", "answer": f"3 + {n} = {n + 3}\n#### {n + 3}"} for n in (4, 5)],
    "math": [
        {"problem": f"Find ${n}/2$.", "level": "Level 1", "type": "Algebra", "solution": f"It is $\\boxed{{{n}/2}}$."}
        for n in (3, 5)
    ],
    "csqa": [
        {
            "id": f"c{n}",
            "question": f"Where is book {n}?",
            "question_concept": "book",
            "choices": CHOICES,
            "answerKey": "B",
        }
        for n in (1, 2)
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_a_plan_of_the_papers_settings_counts_its_trees(name: str, tmp_path: Path) -> None:
    sample = tmp_path / "rows.jsonl"
    sample.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS[name]))
    spec = load_spec(FOLDER / f"{name}.toml", [f"questions.source={sample}"])
    with Store(Settings().store) as store:
        quoted = plan(read_job(spec), store)
    assert (quoted.questions, quoted.requests, quoted.completions) == (2, 2 * (1 + 3 + 9), 2 * 39)


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(name: str) -> None:
    spec = load_spec(FOLDER / f"{name}.toml")
    assert [(spec.roles[role].samples, spec.roles[role].temperature) for role in PLAYERS] == [(3, 0.3)] * 3
    assert spec.credit.threshold == 0.5
    assert [getattr(spec.train, role) for role in PLAYERS] == [("sft",), ("sft", "dpo"), ("sft", "dpo")]
    assert (spec.train.adapter, spec.train.sft.batch_size, spec.train.dpo.beta) == ("lora", 8, 0.2)
    assert spec.evaluate is not None
    assert (spec.evaluate.chains, len(spec.evaluate.seeds)) == (3, 4)
    trained = load_spec(FOLDER / f"{name}.toml", [f"evaluate.models=paper-{name}@v1"]).evaluate
    assert trained is not None
    assert {"untrained", "star", "malt", "generator-untrained", "G+V"} <= trained.systems.keys()


def test_every_paper_config_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == ROWS.keys()
