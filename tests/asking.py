"""Asking in earnest, without Prefect, for all that a spec needs."""

from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.engine.job import Inputs, read_inputs
from malt.llm.client.completers import make_completer
from malt.llm.client.session import open_session
from malt.trees.pipeline import ask_all


def asked_directly(spec: RunSpec, run: str = "") -> Inputs:
    """Return the questions, once everything about them was asked that can be had."""
    inputs, session = read_inputs(spec), open_session(Settings(), spec.limits, run=run)
    ask = make_completer(session, [question.question_id for question in inputs.questions], run=run)
    session.run(ask_all(inputs.questions, spec, inputs.prompts, ask))
    return inputs
