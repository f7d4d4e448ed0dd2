"""Adapters that cannot be proved: the server is not asked. What needs training and a server is in training/."""

import pytest

from malt.cli.main import exit_code
from tests.models.conftest import Publish


def test_a_model_that_cannot_be_proved_is_refused_before_the_server_is_asked(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(["serve-adapters", str(publish().path), "--to", "http://127.0.0.1:9/v1"]) == 2
    assert "has no log-probabilities of its generator" in capsys.readouterr().err
    assert exit_code(["serve-adapters", str(publish().path), "--to", "http://me:secret@127.0.0.1:9/v1"]) == 2
    assert "secret" not in capsys.readouterr().err
