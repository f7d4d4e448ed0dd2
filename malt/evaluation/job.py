"""Evaluation jobs: the inputs of an evaluation, read and checked before any model is asked; and its quote."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from malt.config.base import Recorded
from malt.config.evaluate import EvaluateSpec
from malt.config.roles import PLAYERS, ModelSpec, Role
from malt.config.spec import RunSpec
from malt.datasets.version.dataset_version import open_version
from malt.engine.job import Job, check_models, list_models, models_asked
from malt.engine.plan import Quote, RolePlan, add_quotes, plan
from malt.errors import ConfigError, QuestionError, VersionError, named_place
from malt.evaluation.statistics import questions_needed, smallest_difference
from malt.evaluation.systems import Lineup, find_baseline, list_lineups, require_evaluate
from malt.grading.references import check_references
from malt.llm.store.samples import Store
from malt.models.playing import NAMED, with_weights
from malt.models.version import ModelVersion, open_model
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, read_questions
from malt.questions.screening import Screening, screen
from malt.questions.shingles import find_near_duplicates
from malt.text import list_first

_SHOWN = 5
"""Number of overlapping questions that an error names."""


class EvaluationJob(NamedTuple):
    """Inputs of an evaluation: systems as line-ups, questions and prompts."""

    spec: RunSpec
    questions: list[Question]
    prompts: PromptSet
    lineups: list[Lineup]
    asked: Mapping[str, frozenset[str]] = MappingProxyType({})
    """Ids of the questions asked of each system that a race dropped; the other systems are asked all."""

    def pair(self, lineups: Sequence[Lineup], questions: Sequence[Question]) -> list[tuple[Question, Lineup]]:
        """Pair each of these questions with those of these systems that are asked it."""
        return [(question, lineup) for question in questions for lineup in lineups if self._asks(lineup, question)]

    def _asks(self, lineup: Lineup, question: Question) -> bool:
        return lineup.system not in self.asked or question.question_id in self.asked[lineup.system]

    @property
    def evaluate(self) -> EvaluateSpec:
        return require_evaluate(self.spec)

    @property
    def models(self) -> list[ModelSpec]:
        """Models that the systems may ask, with fallbacks and the judge."""
        return [each for lineup in self.lineups for each in list_models(lineup.spec, {*lineup.roles, Role.EVALUATOR})]


def read_evaluation(spec: RunSpec, limit: int | None = None) -> EvaluationJob:
    """Read questions, the first `limit` of them, prompts and systems, and check them.

    Raises `ConfigError`, `QuestionError` and `PromptError`.
    """
    find_baseline(spec)
    prompts = load_prompts(spec.prompts)
    questions = _read_held_out(spec)[:limit]
    check_references(questions, spec.evaluator)
    known = [lineup._replace(spec=with_weights(lineup.spec)) for lineup in list_lineups(spec)]
    return EvaluationJob(spec, questions, prompts, known)


def check_systems(job: EvaluationJob) -> None:
    """Check name, key and weights of every model without asking it. Raises `ConfigError`."""
    distinct = {lineup.spec.roles.model_dump_json(): lineup for lineup in job.lineups}
    for lineup in distinct.values():
        with named_place(f"system {lineup.system!r}"):
            check_models(lineup.spec)


def _read_held_out(spec: RunSpec) -> list[Question]:
    """Return the questions to evaluate on. Raises `QuestionError` where some are training questions."""
    evaluate = require_evaluate(spec)
    if evaluate.questions is None:
        return _read_validation(spec)
    questions = read_questions(evaluate.questions, "evaluate.questions")
    if evaluate.overlap == "refuse":
        _refuse_overlap(questions, read_questions(spec.questions), spec.questions.source)
        for model in _find_model_versions(spec):
            _refuse_overlap(questions, _read_trained_on(model), f"what {model.reference} was trained on")
    return questions


def _find_model_versions(spec: RunSpec) -> list[ModelVersion]:
    names = {lineup.spec.roles[role].model for lineup in list_lineups(spec) for role in lineup.roles}
    found = (NAMED.fullmatch(name) for name in sorted(names))
    return [open_model(each) for each in sorted({named["version"] for named in found if named is not None})]


def _read_trained_on(model: ModelVersion) -> list[Question]:
    """Return the questions of the dataset versions that a model was trained on, if they can be opened."""
    found: dict[str, Question] = {}
    for entry in (*model.manifest.earlier, model.manifest.dataset):
        with suppress(VersionError):
            found |= {each.question_id: each for each in _read_version(entry.reference)}
    return [*found.values()]


def _read_version(reference: str) -> list[Question]:
    """Return the questions of a dataset version. Raises `VersionError`."""
    rows = open_version(reference).questions
    columns = zip(rows["question_id"], rows["question"], rows["ground_truth"], strict=True)
    return [Question(question_id=key, question=text, ground_truth=truth) for key, text, truth in columns]


def _read_validation(spec: RunSpec) -> list[Question]:
    """Return the questions that the config sets apart from training. Raises `ConfigError` where it sets none apart."""
    if not spec.dataset.validation:
        raise ConfigError(
            f"{spec.name}: evaluate.questions names no file, and dataset.validation sets no questions apart; "
            'say questions = { source = "heldout.jsonl" } under [evaluate]'
        )
    questions = read_questions(spec.questions)
    screening = screen(questions, spec.dataset)
    apart = [each for each in questions if screening.choose_split(each.question_id, spec.dataset) == "validation"]
    if not apart:
        raise ConfigError(
            f"{spec.name}: dataset.validation = {spec.dataset.validation:g} sets none of {len(questions)} questions "
            "apart; name a question file in evaluate.questions"
        )
    return apart


def _refuse_overlap(questions: Sequence[Question], training: Sequence[Question], source: str) -> None:
    """Raise `QuestionError` where questions repeat training questions, nearly word for word."""
    alike = find_near_duplicates([question.question for question in (*training, *questions)])
    found = [
        (questions[place - len(training)].question_id, training[first].question_id)
        for place, first in alike.items()
        if place >= len(training) > first
    ]
    if found:
        named = list_first([own if own == other else f"{own} (as {other})" for own, other in found], _SHOWN)
        raise QuestionError(
            f"{len(found)} of {len(questions)} questions in evaluate.questions are in {source} too: "
            f'{named}; take others, or say overlap = "keep" if nothing was trained on them'
        )


# The quote of an evaluation: what it would ask and cost beyond what the store has.

_DISCORDANCES = (0.1, 0.2, 0.3)
"""Shares of questions on which two systems' votes may differ."""


class SystemPlan(Recorded):
    """Quote of the requests that a system adds to those of the systems before it."""

    roles: dict[Role, RolePlan]


class EvaluationPlan(Quote):
    """Quote of an evaluation, without the votes of the equal-tokens comparison."""

    questions: int
    systems: dict[str, SystemPlan]
    """Quote of what each system adds to those before it, with all seeds and its control."""
    smallest_difference: dict[str, float | None]
    """Smallest difference that shows with 80 % power, by the share of questions on which two votes differ."""
    questions_for_4_points: int
    """Number of questions that show a difference of 4 points, where two votes differ on 20 % of them."""


class _Added(NamedTuple):
    """One role of a line-up, with requests that no earlier line-up makes."""

    lineup: Lineup
    role: Role
    quoted: RolePlan


def plan_evaluation(job: EvaluationJob, store: Store, before: Sequence[EvaluationJob] = ()) -> EvaluationPlan:
    """Quote an evaluation: each subtree once, less what the store has and what the evaluations `before` it will add.

    The evaluations `before` have the same questions.
    """
    known = {_request_key(lineup, role) for each in before for lineup in each.lineups for role in _list_asked(lineup)}
    added = _list_added(job, store, known)
    quoted = [each.quoted for each in added]
    systems = {each.lineup.system: SystemPlan(roles={}) for each in added}
    for each in added:
        plans = systems[each.lineup.system].roles
        plans[each.role] = _add_plans(plans[each.role], each.quoted) if each.role in plans else each.quoted
    found = {f"{100 * share:.0f} %": smallest_difference(len(job.questions), share) for share in _DISCORDANCES}
    return EvaluationPlan(
        questions=len(job.questions),
        systems=systems,
        **add_quotes(quoted),
        smallest_difference=found,
        questions_for_4_points=round(questions_needed(0.04)),
    )


def _list_added(job: EvaluationJob, store: Store, known: Collection[str]) -> list[_Added]:
    """Quote the roles of each line-up that no earlier line-up asks below the same texts."""
    added, places = [], set(known)
    for lineup in job.lineups:
        quoted = plan(Job(lineup.spec, job.prompts, job.questions, Screening()), store).roles
        for role in _list_asked(lineup):
            place = _request_key(lineup, role)
            if place not in places:
                places.add(place)
                added.append(_Added(lineup, role, quoted[role]))
    return added


def _list_asked(lineup: Lineup) -> list[Role]:
    return [role for role in models_asked(lineup.spec) if role in lineup.roles or role is Role.EVALUATOR]


def _request_key(lineup: Lineup, role: Role) -> str:
    """Return a key of what decides a role's requests: its own model and those of the roles before it."""
    depth = PLAYERS.index(role) + 1 if role in PLAYERS else len(PLAYERS)
    cast = [lineup.spec.roles[each].model_dump_json() for each in PLAYERS[:depth] if each in lineup.roles]
    return "\n".join([role.value, *cast])


def _add_plans(first: RolePlan, second: RolePlan) -> RolePlan:
    """Add up the quotes of one role in two line-ups of a system."""
    return first.model_copy(update=add_quotes([first, second]))
