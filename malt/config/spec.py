"""RunSpec: what a dataset is, declared. The TOML file, the Prefect form and the manifest are this one model."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from malt.config.base import Declared, wrap_single
from malt.config.evaluate import EvaluateSpec, ImproveSpec
from malt.config.limits import Limits, RunOptions
from malt.config.questions import QuestionSource
from malt.config.roles import PLAYERS, M, ModelSpec, Role, Roles, inherit
from malt.config.secret_scan import find_forbidden
from malt.config.train import TrainSpec

_ADAPTIVE_IN_BATCHES = (
    'growth = "adaptive" decides after every answer, run.mode = "batch" asks a level at a time: set growth = "full", '
    'or mode = "direct"'
)
GraderKind = Literal["llm", "exact", "contains", "number", "math", "choice", "python"]
GraderKinds = Annotated[tuple[GraderKind, ...], Field(min_length=1)]


class EvaluatorSpec(ModelSpec):
    """How the leaves are graded."""

    first: ClassVar[tuple[str, ...]] = ("kind", "model", "temperature", "max_tokens", "scope")

    kind: Annotated[tuple[GraderKind, ...], BeforeValidator(wrap_single, GraderKinds | GraderKind)] = ()
    """Graders in order; the first that can decide does. There is no default: a run is refused without one."""
    temperature: float | None = Field(0.1, ge=0, le=2)
    """Sampling temperature of the judge; empty: the provider's default."""
    scope: Literal["leaves", "all"] = "leaves"
    """What is judged: `all` adds the generator's and verifier's texts, for their own evaluation columns."""
    correctness_weight: float = Field(0.5, ge=0)
    """Weight of the judge's correctness score; the two weights are scaled to sum to one."""
    reasoning_weight: float = Field(0.5, ge=0)
    """Weight of the judge's reasoning score."""
    function: str | None = Field(None, pattern=r"^[^:]+:[\w.]+$")
    """For kind `python`: `module:function` or `file.py:function`, called with (question, ground_truth, answer)."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds one judge request may take."""
    grader_timeout_s: float = Field(10.0, gt=0)
    """Seconds one answer may take in `math` or `python`; past it the grade is unknown."""

    @model_validator(mode="after")
    def _kind_has_what_it_needs(self) -> Self:
        if ("python" in self.kind) != (self.function is not None):
            raise ValueError("kind 'python' and `function = \"module:function\"` go together; set both or neither")
        if self.scope == "all" and "llm" not in self.kind:
            raise ValueError('scope = "all" needs a judge: add \'llm\' to kind, or set scope = "leaves"')
        if self.correctness_weight + self.reasoning_weight == 0:
            raise ValueError("correctness_weight and reasoning_weight are both 0; at least one must count")
        return self


class CreditSpec(Declared):
    """How leaf grades become labels."""

    threshold: float = Field(0.5, ge=0, lt=1)
    """A node is labelled right only when its value is above this; a value equal to it is wrong."""
    truncated: Literal["wrong", "unknown"] = "wrong"
    """What a leaf cut off at max_tokens counts as: wrong as in the paper, or unknown, left out of the means."""
    max_unknown: float = Field(0.2, ge=0, le=1)
    """Share of leaves whose grading may fail. Past it the run ends with exit 1, and `latest` keeps its version."""


GrowthMode = Literal["full", "adaptive"]


class GrowthSpec(Declared):
    """How much of each tree is grown."""

    mode: GrowthMode = "full"
    """`full`: every node has all of its children, as in the paper. `adaptive`: leaves where siblings may disagree."""
    confidence: float = Field(0.9, gt=0.5, lt=1)
    """Adaptive: how sure it must be that a label is the full tree's, and that no further leaf would make a pair."""


def _as_growth(value: object) -> object:
    """Let the mode alone be written without a table."""
    return {"mode": value} if isinstance(value, str) else value


class DatasetSpec(Declared):
    """Which rows are written. Every gate counts what it leaves out, in the manifest and in the card."""

    license: str = Field("unknown", pattern=r"^[a-z0-9.-]+$")
    """Licence for the card, as the Hub writes it, such as cc-by-4.0: what questions and models' outputs allow."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the questions whose rows go into the validation split, chosen by their ids alone."""
    generator_dpo: bool = False
    """Write preference pairs for the generator too; the paper found them harmful for instruction-tuned models."""
    decontaminate: Annotated[tuple[str, ...], BeforeValidator(wrap_single, tuple[str, ...] | str)] = ()
    """Test sets, as question files; a question that shares a run of words with one of theirs gives no rows."""
    decontaminate_words: int = Field(13, ge=5)
    """How many words in a row are an overlap with a test set."""
    duplicate_questions: Literal["drop", "keep"] = "drop"
    """Questions that ask nearly word for word, with the same numbers, what an earlier one asks."""
    flawed_texts: Literal["drop", "keep"] = "drop"
    """Texts that are truncated, empty or refused: they would teach just that."""
    unmarked_texts: Literal["drop", "keep"] = "keep"
    """Texts to be learned that mark no final answer, or critiques that state no verdict: some are right by luck."""
    false_verdicts: Literal["drop", "keep"] = "keep"
    """Critiques to be learned that call a right answer wrong, or a wrong one right, whatever came of them."""
    leaks: Literal["drop", "keep"] = "drop"
    """Critiques and refinements that quote the reference answer at length, though nothing they saw holds it."""
    identical_pairs: Literal["drop", "keep"] = "drop"
    """Pairs of texts that are the same but for case and space."""
    max_similarity: float = Field(0.98, ge=0, le=1)
    """Leave out pairs of texts more alike than this that answer alike, with the same numbers; 1: none."""
    same_answer: Annotated[tuple[Role, ...], BeforeValidator(wrap_single, tuple[Role, ...] | Role)] = PLAYERS[-1:]
    """Roles whose pairs are left out where both texts give the same final answer: it cannot be right and wrong."""
    repeats: Literal["keep", "drop"] = "keep"
    """Rows whose texts an earlier row below the same parent has already; the paper keeps them."""
    min_margin: float = Field(0.0, ge=0, le=1)
    """Leave out pairs whose values differ by less; the paper keeps every pair."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Leave out pairs whose order is right with less probability, given how few leaves their values come from."""
    tokenizer: str | None = None
    """A tokenizer.json, or a model on the Hub, to count tokens with; empty: a token is taken as four characters."""
    max_length: int | None = Field(None, ge=1)
    """Leave out rows longer than the trainer's `max_length`: tokens of the prompt and the longest text. Empty: none."""
    max_length_ratio: float | None = Field(None, ge=1)
    """Leave out pairs of which one text has more than this many times the characters of the other. Empty: none."""
    max_pairs_per_question: int | None = Field(None, ge=1)
    """Pairs that one question gives each role at most: those of largest margin, then confidence. Empty: all."""
    max_examples_per_question: int | None = Field(None, ge=1)
    """Supervised examples that one question gives each role at most: those of highest value. Empty: all."""
    balance: Literal["none", "labels"] = "none"
    """`labels`: cut each role's kto rows of a question to as many right as wrong; best right, worst wrong are kept."""

    @field_validator("same_answer")
    @classmethod
    def _roles_that_answer(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        if not all(role.gives_answer for role in roles):
            answering = " and the ".join(role for role in PLAYERS if role.gives_answer)
            raise ValueError(f"only the {answering} give final answers")
        return roles


_PLACE = ("model", "weights", "api_base", "api_key_env", "api_key_block", "fallbacks", "extra", "timeout_s")
"""What `[model]` says of where a model is served, and not of how it samples: the judge takes this alone."""


def _spread(shared: Mapping[str, object], own: object) -> object:
    return inherit(shared, own, _PLACE[1:]) if isinstance(own, Mapping) else own


def _is_refused(model: Mapping[str, object]) -> bool:
    with suppress(ValidationError):
        ModelSpec.model_validate(model)
        return False
    return True


class RunSpec(Declared):
    """One dataset, declared. Two equal specs name the same dataset."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", max_length=100)
    """Name of the dataset: lower-case letters, digits and hyphens."""
    questions: QuestionSource
    """Where the questions come from and how to read them."""
    prompts: str = Field("general", min_length=1)
    """A prompt set under prompts/ (general, math, choice), or a folder of your own."""
    model: ModelSpec | None = None
    """What holds for every role that says nothing else: model, address, key, and for the trained ones the sampling.

    A role with an address of its own, or a model of another provider, takes neither address nor key from here."""
    roles: Roles = Field(default_factory=Roles)
    """Who plays the three trained roles."""
    evaluator: EvaluatorSpec = Field(default_factory=EvaluatorSpec)
    """How the leaves are graded."""
    credit: CreditSpec = Field(default_factory=CreditSpec)
    """How leaf grades become labels."""
    growth: Annotated[GrowthSpec, BeforeValidator(_as_growth, GrowthSpec | GrowthMode)] = Field(
        default_factory=GrowthSpec
    )
    """How much of each tree is grown: `full` or `adaptive`."""
    dataset: DatasetSpec = Field(default_factory=DatasetSpec)
    """Which rows are written."""
    limits: Limits = Field(default_factory=Limits)
    """What the run may use."""
    run: RunOptions = Field(default_factory=RunOptions)
    """How the run is carried out."""
    train: TrainSpec = Field(default_factory=TrainSpec)
    """What `malt train` does with a version."""
    evaluate: EvaluateSpec | None = None
    """Systems to compare on held-out questions, for `malt evaluate`."""
    improve: ImproveSpec = Field(default_factory=ImproveSpec)
    """How `malt improve` goes round."""

    @model_validator(mode="before")
    @classmethod
    def _spread_model(cls, values: object) -> object:
        if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
            return values
        shared, roles = values["model"], values.get("roles", {})
        if not isinstance(roles, Mapping) or _is_refused(shared):  # which is told where it stands
            return values
        place = {name: shared[name] for name in _PLACE if name in shared}
        inherited = {role.value: _spread(shared, roles.get(role, {})) for role in PLAYERS}
        judge = _spread(place, values.get("evaluator", {}))
        return {**values, "roles": {**roles, **inherited}, "evaluator": judge}

    @field_validator("model")
    @classmethod
    def _is_spread(cls, _model: ModelSpec | None) -> None:
        """Keep it in the roles alone."""

    @model_validator(mode="after")
    def _every_role_has_a_model(self) -> Self:
        """Refuse a default model beside models that were chosen."""
        declared: dict[str, ModelSpec] = {f"roles.{role}": self.roles[role] for role in PLAYERS}
        chosen = [name for name, model in declared.items() if "model" in model.model_fields_set]
        lacking = [name for name in declared if chosen and name not in chosen]
        if "llm" in self.evaluator.kind and "model" not in self.evaluator.model_fields_set:
            lacking.append("evaluator")
        if lacking:
            beside = f", while {chosen[0]} names {declared[chosen[0]].model!r}" if chosen else " for the judge"
            raise ValueError(f"{lacking[0]}.model: missing{beside}; name one there, or in [model] for every role")
        return self

    @model_validator(mode="after")
    def _batches_ask_for_whole_levels(self) -> Self:
        if self.run.mode == "batch" and self.growth.mode == "adaptive":
            raise ValueError(_ADAPTIVE_IN_BATCHES)
        return self

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, values: object) -> object:
        if isinstance(values, Mapping) and (problems := [problem for _, problem in find_forbidden(values)]):
            raise ValueError("; ".join(problems))
        return values

    @property
    def key_blocks(self) -> set[str]:
        """Names of the Prefect blocks that hold keys."""
        declared = [self.evaluator, *(self.roles[role] for role in PLAYERS)]
        return {model.api_key_block for model in declared if model.api_key_block}

    def with_keys_from(self, variables: Mapping[str, str]) -> Self:
        """Return the spec with each block replaced by the environment variable that has its key now."""

        def keyed(model: M) -> M:
            if model.api_key_block is None:
                return model
            return model.model_copy(update={"api_key_block": None, "api_key_env": variables[model.api_key_block]})

        roles = self.roles.changed(lambda _, own: keyed(own))
        return self.model_copy(update={"roles": roles, "evaluator": keyed(self.evaluator)})

    def as_config(self) -> dict[str, Any]:
        """Return the whole spec as plain JSON values, as the manifest keeps it."""
        return self.model_dump(mode="json")
