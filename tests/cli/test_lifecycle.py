"""`malt tag`, `malt rm` and tags in `malt datasets`; `rebuild` and `gc` are tested beside the code that they call."""

import json
from collections.abc import Callable

import pytest

from malt.cli.main import exit_code
from malt.config.settings import Settings
from tests.published import publish_questions

Said = tuple[int, str, str]


@pytest.fixture
def malt(capsys: pytest.CaptureFixture[str], settings: Settings) -> Callable[..., Said]:
    """Run a command where `arith` has three versions; return its exit code, stdout and stderr."""
    for question_id in ("q1", "q2", "q3"):
        publish_questions([question_id], settings.datasets_dir)

    def run(*arguments: str) -> Said:
        code = exit_code([*arguments])
        return code, *capsys.readouterr()

    return run


def test_a_tag_is_set_moved_listed_and_removed(malt: Callable[..., Said]) -> None:
    assert malt("tag", "arith@v1", "paper") == (0, "arith@paper names v1\n", "")
    assert malt("tag", "arith@v2", "paper", "--move") == (0, "arith@paper names v2, before v1\n", "")
    assert malt("tag", "arith@paper", "best", "--json")[1] == (
        '{"dataset": "arith", "tag": "best", "version": 2, "before": null}\n'
    )
    listed = json.loads(malt("datasets", "--json")[1])["versions"]
    assert [each["tags"] for each in listed] == [[], ["best", "paper"], []]
    assert "best, paper" in malt("datasets")[1]
    assert malt("show", "arith@best")[0] == 0
    assert malt("tag", "arith", "best", "--remove") == (0, "arith@best is gone; it named v2\n", "")


def test_a_tag_that_cannot_be_set_says_why(malt: Callable[..., Said]) -> None:
    malt("tag", "arith@v1", "paper")
    for arguments, said in [
        (("arith@v2", "paper"), "points at v1; to move it to v2, add --move"),
        (("arith@v2", "v9"), "is no valid tag"),
        (("arith", "nothing", "--remove"), "has no tag 'nothing'; there are: paper"),
        (("arith", "paper", "--remove", "--move"), "exclude each other"),
    ]:
        code, out, err = malt("tag", *arguments)
        assert (code, out) == (2, "")
        assert said in err


def test_a_version_is_removed_unless_it_is_needed(malt: Callable[..., Said], settings: Settings) -> None:
    malt("tag", "arith@v1", "paper")
    for reference in ("arith", "arith@paper"):
        code, out, err = malt("rm", reference)
        assert (code, out, "stays" in err) == (2, "", True)
    code, out, err = malt("rm", "arith@v2", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["removed"] == "arith@v2"
    assert [each["version"] for each in json.loads(malt("datasets", "--json")[1])["versions"]] == [1, 3]
    malt("tag", "arith", "paper", "--remove")
    assert malt("rm", "arith@v1")[1].startswith("arith@v1 removed, 0.")
