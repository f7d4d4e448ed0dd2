"""Inputs: what a run reads before it asks anybody. What is wrong with it is found here, before money is spent."""

from typing import NamedTuple

from malt.config.spec import PLAYERS, ModelSpec, Role, RunSpec
from malt.datasets.rows.lengths import token_counter
from malt.errors import ConfigError
from malt.grading.references import check_references
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, read_questions
from malt.questions.screening import Screening, screen


class Inputs(NamedTuple):
    """The questions and the prompts of a run, and what is known of the questions before they are asked."""

    questions: list[Question]
    prompts: PromptSet
    screening: Screening


def read_inputs(spec: RunSpec) -> Inputs:
    """Read questions and prompts, check that every reference answer can be graded against, and screen the questions.

    Raises `QuestionError`, `PromptError`, `GradingError`, or `ConfigError` for a tokenizer that cannot be had.
    """
    prompts = load_prompts(spec.prompts)
    questions = read_questions(spec.questions)
    check_references(questions, spec.evaluator)
    token_counter(spec.dataset)
    return Inputs(questions, prompts, screen(questions, spec.dataset))


def models_asked(spec: RunSpec) -> dict[Role, ModelSpec]:
    """Return the roles that a run asks: the judge only where a grader needs one."""
    judge = {Role.EVALUATOR: spec.evaluator} if "llm" in spec.evaluator.kind else {}
    return {**{role: spec.roles[role] for role in PLAYERS}, **judge}


def check_models(spec: RunSpec) -> None:
    """Check name, key and weights of every model and fallback without asking it. Raises `ConfigError`."""
    from malt.llm.batch import api
    from malt.llm.batch.api import is_asked_in_batches
    from malt.llm.provider import call

    for role in models_asked(spec).values():
        for model in (role, *role.backups):
            call.check(model, spec.limits)
            if is_asked_in_batches(model, spec):
                api.check(model)
    if spec.run.mode == "batch" and not any(is_asked_in_batches(model, spec) for model in models_asked(spec).values()):
        raise ConfigError(
            'run.mode = "batch", but no role has a model named openai/…, which are those that can be asked in batches; '
            "leave mode out"
        )
