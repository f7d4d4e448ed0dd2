"""Fixtures: a version with all kinds of rows, one with hardly any, and the `malt export` command."""

from dataclasses import replace

import pytest

from malt.cli.main import exit_code
from malt.datasets.version.dataset_version import DatasetVersion
from malt.questions.screening import Exclusion, Screening
from tests.datasets.export.exporting import Export, Said, shown_an_example
from tests.published import PROVENANCE, publish, spec_of
from tests.strategies import tree_of, valued


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version of six questions, some in validation, one without rows; with pairs for every role."""
    screening = Screening(excluded={"q5": Exclusion("duplicate_questions", "q1")})
    trees = [shown_an_example(f"q{number}", number) for number in range(6)]
    made_by = replace(PROVENANCE, screening=screening)
    return publish(trees, spec_of(generator_dpo=True, validation=0.4), made_by, tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version of one question whose leaves are all wrong: without supervised rows and pairs."""
    folder = tmp_path_factory.mktemp("datasets")
    return publish([valued(tree_of("q1"), [0] * 27)], spec_of("few"), PROVENANCE, folder)


@pytest.fixture
def malt_export(capsys: pytest.CaptureFixture[str]) -> Export:
    def run(version: DatasetVersion, to: str, *arguments: object) -> Said:
        code = exit_code(["export", str(version.path), "--to", to, *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return run
