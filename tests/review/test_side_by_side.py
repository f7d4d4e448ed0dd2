"""`malt compare`: figures of several versions side by side, from their manifests and files."""

import json

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from malt.review.side_by_side import standing_of
from tests.published import publish_questions


def test_every_figure_is_that_of_the_version() -> None:
    version = publish_questions(["q1", "q2"], Settings().datasets_dir)
    found = standing_of(version)
    assert (found.version, found.questions) == (version.reference, 2)
    assert found.rows == {
        kind: sum(len(getattr(version, kind)(role)) for role in ("generator", "verifier", "refiner"))
        for kind in ("sft", "dpo", "kto")
    }
    assert found.leaves_vote_percent == version.manifest.diagnostics.leaves_vote.percent
    assert found.refiner_percent == version.manifest.diagnostics.refiner.percent
    nodes = version.trajectories
    known = nodes[["prompt_tokens", "completion_tokens"]].notna().to_numpy().all()
    assert found.tokens == (int(nodes.prompt_tokens.sum() + nodes.completion_tokens.sum()) if known else None)


def test_compare_shows_versions_in_the_order_that_they_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Settings().datasets_dir
    publish_questions(["q1"], folder)
    publish_questions(["q1", "q2"], folder)
    assert exit_code(["compare", "arith@v2", "arith@v1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["versions"]
    assert [(each["version"], each["questions"]) for each in told] == [("arith@v2", 2), ("arith@v1", 1)]
    assert exit_code(["compare", "arith@v1", "arith@v2"]) == 0
    assert "arith@v2" in capsys.readouterr().out
    assert exit_code(["compare", "other"]) == 2
