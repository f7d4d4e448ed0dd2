"""All that an evaluation reads before it asks anybody. What is wrong with it is found here, before money is spent."""

from collections.abc import Sequence
from typing import NamedTuple

from malt.config.spec import EvaluateSpec, RunSpec
from malt.engine.job import check_models
from malt.errors import ConfigError, QuestionError
from malt.evaluation.systems import Lineup, baseline_of, evaluate_spec, lineups
from malt.grading.references import check_references
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, read_questions
from malt.questions.screening import COMPARED, NEAR, RUN, screen
from malt.questions.shingles import earlier_alike

SHOWN = 5
"""Overlapping questions that are named."""


class EvaluationJob(NamedTuple):
    """What is to be evaluated, and on what."""

    spec: RunSpec
    questions: list[Question]
    prompts: PromptSet
    lineups: list[Lineup]

    @property
    def evaluate(self) -> EvaluateSpec:
        """What the config says of it."""
        return evaluate_spec(self.spec)


def read_evaluation(spec: RunSpec) -> EvaluationJob:
    """Read questions, prompts and systems, and check them. Raises `ConfigError`, `QuestionError` and `PromptError`."""
    baseline_of(spec)
    prompts = load_prompts(spec.prompts)
    questions = held_out_questions(spec)
    check_references(questions, spec.evaluator)
    return EvaluationJob(spec, questions, prompts, lineups(spec))


def check_systems(job: EvaluationJob) -> None:
    """Check name, key and weights of every model without asking it. Raises `ConfigError`."""
    distinct = {lineup.spec.roles.model_dump_json(): lineup.spec for lineup in job.lineups}
    for spec in distinct.values():
        check_models(spec)


def held_out_questions(spec: RunSpec) -> list[Question]:
    """Return the questions to evaluate on. Raises `QuestionError` where some are among those of the config."""
    evaluate = evaluate_spec(spec)
    if evaluate.questions is None:
        return validation_questions(spec)
    questions = read_questions(evaluate.questions)
    if evaluate.overlap == "refuse":
        refuse_overlap(questions, read_questions(spec.questions), spec)
    return questions


def validation_questions(spec: RunSpec) -> list[Question]:
    """Return the questions that the config sets apart from training. Raises `ConfigError` where it sets none apart."""
    if not spec.dataset.validation:
        raise ConfigError(
            f"{spec.name}: evaluate.questions names no file, and dataset.validation sets no questions apart; "
            'say questions = { source = "heldout.jsonl" } under [evaluate]'
        )
    questions = read_questions(spec.questions)
    screening = screen(questions, spec.dataset)
    apart = [each for each in questions if screening.split_of(each.question_id, spec.dataset) == "validation"]
    if not apart:
        raise ConfigError(
            f"{spec.name}: dataset.validation = {spec.dataset.validation:g} sets none of {len(questions)} questions "
            "apart; name a question file in evaluate.questions"
        )
    return apart


def refuse_overlap(questions: Sequence[Question], training: Sequence[Question], spec: RunSpec) -> None:
    """Raise `QuestionError` where questions are, nearly word for word, among those of the config."""
    texts = [question.question for question in (*training, *questions)]
    alike = earlier_alike(texts, RUN, NEAR, COMPARED)
    found = [
        (questions[place - len(training)].question_id, training[first].question_id)
        for place, first in alike.items()
        if place >= len(training) > first
    ]
    if found:
        named = ", ".join(own if own == other else f"{own} (as {other})" for own, other in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise QuestionError(
            f"{len(found)} of {len(questions)} questions in evaluate.questions are in {spec.questions.source} too: "
            f'{named}{more}; take others, or say overlap = "keep" if nothing was trained on them'
        )
