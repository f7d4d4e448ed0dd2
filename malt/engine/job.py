"""Job: spec, prompts, questions and screening of a run, checked before the first model call costs money."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from malt.config.roles import PLAYERS, ModelSpec, Role
from malt.config.settings import Settings
from malt.config.spec import RunSpec
from malt.datasets.rows.selection import token_counter
from malt.errors import ConfigError, named_place
from malt.grading.judge import LLMEvaluator
from malt.grading.references import check_references
from malt.llm.request import Complete
from malt.models.playing import with_weights
from malt.prompts import PromptSet, load_prompts
from malt.questions.question import Question, read_questions
from malt.questions.screening import Screening, screen
from malt.trees.growth import TreeInputs
from malt.trees.replay import Source


@dataclass(frozen=True)
class Job:
    """Questions to grow trees for, with spec, prompts and settings. Picklable, to send a part to another process."""

    spec: RunSpec
    prompts: PromptSet
    questions: Sequence[Question]
    screening: Screening
    settings: Settings = field(default_factory=Settings)
    judge: LLMEvaluator | None = None
    """Judge that replaces the one the spec declares."""

    @property
    def source(self) -> Source:
        return Source(
            self.spec, self.prompts, self.settings.store, patience_s=self.settings.store_patience_s, judge=self.judge
        )

    def inputs(self, complete: Complete) -> TreeInputs:
        return TreeInputs(self.spec, self.prompts, complete, self.judge)

    def only(self, questions: Sequence[Question]) -> "Job":
        ids = [question.question_id for question in questions]
        return replace(self, questions=questions, screening=self.screening.select(ids))


_read: ContextVar[Job | None] = ContextVar("read_job", default=None)


@contextmanager
def handing_over(job: Job) -> Iterator[None]:
    """Let `read_job` return this job for its spec in this context: a flow called here need not read it again."""
    token = _read.set(job)
    try:
        yield
    finally:
        _read.reset(token)


def read_job(spec: RunSpec, settings: Settings | None = None) -> Job:
    """Read questions and prompts, check that every reference answer can be graded against, and screen the questions.

    Raises `QuestionError`, `PromptError`, `GradingError`, or `ConfigError` for a tokenizer or a model version that
    cannot be loaded.
    """
    read = _read.get()
    if read is not None and read.spec == spec:
        return read
    return make_job(spec, read_questions(spec.questions), settings)


def make_job(
    spec: RunSpec, questions: Sequence[Question], settings: Settings | None = None, judge: LLMEvaluator | None = None
) -> Job:
    """Check and screen questions that were read already; raises the same errors as `read_job`."""
    spec = with_weights(spec, settings)
    prompts = load_prompts(spec.prompts)
    check_references(questions, spec.evaluator)
    token_counter(spec.dataset)
    return Job(spec, prompts, questions, screen(questions, spec.dataset), settings or Settings(), judge)


def models_asked(spec: RunSpec) -> dict[Role, ModelSpec]:
    """Return the models that a run calls, by role: the judge only if a grader needs one."""
    judge = {Role.EVALUATOR: spec.evaluator} if "llm" in spec.evaluator.kind else {}
    return {**{role: spec.roles[role] for role in PLAYERS}, **judge}


def list_models(spec: RunSpec, roles: Collection[Role] = frozenset(Role)) -> list[ModelSpec]:
    """Return the models that a run may call for some roles: each role's model, then its fallbacks."""
    asked = [model for role, model in models_asked(spec).items() if role in roles]
    return [each for model in asked for each in (model, *model.backups)]


def _place_models(spec: RunSpec) -> Iterator[tuple[str, str, ModelSpec]]:
    """Yield the models that a run may call, each with the key of the config that names it, and where its others are."""
    for role, model in models_asked(spec).items():
        yield spec.key_of(role), spec.table_of(role), model
        fallbacks = spec.key_of(role, "fallbacks")
        yield from ((fallbacks, fallbacks, backup) for backup in model.backups)


def check_models(spec: RunSpec) -> None:
    """Check name, key and weights of every model and fallback without calling it. Raises `ConfigError`."""
    from malt.llm.batch import api
    from malt.llm.provider import call

    for key, table, model in _place_models(with_weights(spec)):
        with named_place(key):
            call.check_name(model)
        with named_place(table):
            call.check(model, spec.limits)
            if api.is_asked_in_batches(model, spec):
                api.check_batchable(model)
    asked = models_asked(spec).values()
    if spec.run.mode == "batch" and not any(api.is_asked_in_batches(model, spec) for model in asked):
        raise ConfigError(
            'run.mode = "batch", but no role has a model named openai/…, and only those can be asked in batches; '
            "leave mode out"
        )
