"""RunSpec: declaration of a dataset. The TOML file, the Prefect form and the manifest all use this one model."""

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
    """Graders of the leaves, and the judge's model."""

    first: ClassVar[tuple[str, ...]] = ("kind", "model", "temperature", "max_tokens", "scope")

    kind: Annotated[tuple[GraderKind, ...], BeforeValidator(wrap_single, GraderKinds | GraderKind)] = ()
    """Graders in order; the first that can decide gives the grade. Required: a run without graders is refused."""
    temperature: float | None = Field(0.1, ge=0, le=2)
    """Sampling temperature of the judge; empty: the provider's default."""
    scope: Literal["leaves", "all"] = "leaves"
    """Texts to judge: `leaves`, or `all`, which adds the generator's and verifier's texts in columns of their own."""
    correctness_weight: float = Field(0.5, ge=0)
    """Weight of the judge's correctness score; the two weights are scaled to sum to one."""
    reasoning_weight: float = Field(0.5, ge=0)
    """Weight of the judge's reasoning score."""
    function: str | None = Field(None, pattern=r"^[^:]+:[\w.]+$")
    """For kind `python`: `module:function` or `file.py:function`, called with (question, ground_truth, answer)."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds one judge request may take."""
    grader_timeout_s: float = Field(10.0, gt=0)
    """Seconds that grading one answer may take in `math` or `python`; after that its grade is unknown."""

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
    """Rules that turn leaf grades into labels."""

    threshold: float = Field(0.5, ge=0, lt=1)
    """A node is labelled right only when its value is above this; a value equal to it is wrong."""
    truncated: Literal["wrong", "unknown"] = "wrong"
    """Grade of a leaf that is cut off at max_tokens: wrong as in the paper, or unknown, which no mean counts."""
    max_unknown: float = Field(0.2, ge=0, le=1)
    """Largest share of leaves with an unknown grade. Above it the run exits with 1, and `latest` is not moved."""


GrowthMode = Literal["full", "adaptive"]


class GrowthSpec(Declared):
    """Extent to which each tree is grown."""

    mode: GrowthMode = "full"
    """`full`: all children of every node, as in the paper. `adaptive`: leaves only where siblings may disagree."""
    confidence: float = Field(0.9, gt=0.5, lt=1)
    """Adaptive: growth stops at this probability that labels equal the full tree's and no further leaf adds a pair."""


def _as_growth(value: object) -> object:
    """Let the mode alone be written without a table."""
    return {"mode": value} if isinstance(value, str) else value


class DatasetSpec(Declared):
    """Rules that select the rows. The manifest and the card count the rows that each rule leaves out."""

    license: str = Field("unknown", pattern=r"^[a-z0-9.-]+$")
    """Licence for the card, as the Hub writes it, such as cc-by-4.0; the questions and model outputs must allow it."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the questions whose rows go into the validation split, chosen by question id alone."""
    generator_dpo: bool = False
    """Write preference pairs for the generator too; the paper found them harmful for instruction-tuned models."""
    decontaminate: Annotated[tuple[str, ...], BeforeValidator(wrap_single, tuple[str, ...] | str)] = ()
    """Test sets, as question files. A question that shares a run of words with one of theirs gives no rows."""
    decontaminate_words: int = Field(13, ge=5)
    """Length in words of a shared run that counts as an overlap with a test set."""
    duplicate_questions: Literal["drop", "keep"] = "drop"
    """Questions that nearly repeat an earlier one, with the same numbers."""
    flawed_texts: Literal["drop", "keep"] = "drop"
    """Texts that are truncated, empty or refused; training on them would teach exactly that."""
    unmarked_texts: Literal["drop", "keep"] = "keep"
    """SFT and chosen texts that mark no final answer, or critiques without a verdict: some are right by luck."""
    false_verdicts: Literal["drop", "keep"] = "keep"
    """SFT and chosen critiques that call a right answer wrong or a wrong one right, even if refinements succeed."""
    leaks: Literal["drop", "keep"] = "drop"
    """Critiques and refinements that quote the reference answer at length although it is not in their prompt."""
    identical_pairs: Literal["drop", "keep"] = "drop"
    """Pairs whose texts differ only in case and white space."""
    max_similarity: float = Field(0.98, ge=0, le=1)
    """Drop pairs whose texts are more similar than this and have the same answer, verdict and numbers. 1: drop none."""
    same_answer: Annotated[tuple[Role, ...], BeforeValidator(wrap_single, tuple[Role, ...] | Role)] = PLAYERS[-1:]
    """Roles whose pairs are dropped if both texts give the same final answer, which cannot be both right and wrong."""
    repeats: Literal["keep", "drop"] = "keep"
    """Rows that repeat the texts of an earlier row below the same parent; the paper keeps them."""
    min_margin: float = Field(0.0, ge=0, le=1)
    """Drop pairs whose values differ by less than this; the paper keeps every pair."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Drop pairs whose order is right with a lower probability than this; few leaves make values uncertain."""
    tokenizer: str | None = None
    """A tokenizer.json, or a model on the Hub, to count tokens with; empty: a token counts as four characters."""
    max_length: int | None = Field(None, ge=1)
    """Drop rows with more tokens than this in prompt and longest text: the trainer's `max_length`. Empty: drop none."""
    max_length_ratio: float | None = Field(None, ge=1)
    """Drop pairs in which one text has more than this many times the characters of the other. Empty: drop none."""
    max_pairs_per_question: int | None = Field(None, ge=1)
    """Most pairs per question and role; those of largest margin, then highest confidence, are kept. Empty: all."""
    max_examples_per_question: int | None = Field(None, ge=1)
    """Most SFT examples per question and role; those of highest value are kept. Empty: all."""
    balance: Literal["none", "labels"] = "none"
    """`labels`: cut a question's KTO rows of each role to as many right as wrong; the best right, worst wrong stay."""

    @field_validator("same_answer")
    @classmethod
    def _roles_that_answer(cls, roles: tuple[Role, ...]) -> tuple[Role, ...]:
        if not all(role.gives_answer for role in roles):
            answering = " and the ".join(role for role in PLAYERS if role.gives_answer)
            raise ValueError(f"only the {answering} give final answers")
        return roles


_PLACE = ("model", "weights", "api_base", "api_key_env", "api_key_block", "fallbacks", "extra", "timeout_s")
"""Keys of `[model]` about where a model is served, not how it samples: the only ones that the judge inherits."""


def _spread(shared: Mapping[str, object], own: object) -> object:
    return inherit(shared, own, _PLACE[1:]) if isinstance(own, Mapping) else own


def _is_refused(model: Mapping[str, object]) -> bool:
    with suppress(ValidationError):
        ModelSpec.model_validate(model)
        return False
    return True


class RunSpec(Declared):
    """Declaration of one dataset. Two equal specs declare the same dataset."""

    name: str = Field(pattern=r"^[a-z0-9-]+$", max_length=100)
    """Name of the dataset: lower-case letters, digits and hyphens."""
    questions: QuestionSource
    """Source of the questions, and how to read it."""
    prompts: str = Field("general", min_length=1)
    """A prompt set under prompts/ (general, math, choice), or a folder of your own."""
    model: ModelSpec | None = None
    """Defaults for every role: model, address, key, and for the trained roles the sampling.

    A role with its own address, or with a model of another provider, takes neither address nor key from here."""
    roles: Roles = Field(default_factory=Roles)
    """Models of the three trained roles."""
    evaluator: EvaluatorSpec = Field(default_factory=EvaluatorSpec)
    """Graders of the leaves, and the judge's model."""
    credit: CreditSpec = Field(default_factory=CreditSpec)
    """Rules that turn leaf grades into labels."""
    growth: Annotated[GrowthSpec, BeforeValidator(_as_growth, GrowthSpec | GrowthMode)] = Field(
        default_factory=GrowthSpec
    )
    """Extent to which each tree is grown: `full` or `adaptive`."""
    dataset: DatasetSpec = Field(default_factory=DatasetSpec)
    """Rules that select the rows to write."""
    limits: Limits = Field(default_factory=Limits)
    """Caps and rates of the run: money, tokens, requests."""
    run: RunOptions = Field(default_factory=RunOptions)
    """Options for carrying out the run: direct or in batches, task runs, and where they run."""
    train: TrainSpec = Field(default_factory=TrainSpec)
    """Settings of `malt train`."""
    evaluate: EvaluateSpec | None = None
    """Systems to compare on held-out questions, for `malt evaluate`."""
    improve: ImproveSpec = Field(default_factory=ImproveSpec)
    """Rounds of growing, training and evaluating, for `malt improve`."""

    @model_validator(mode="before")
    @classmethod
    def _spread_model(cls, values: object) -> object:
        if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
            return values
        shared, roles = values["model"], values.get("roles", {})
        if not isinstance(roles, Mapping) or _is_refused(shared):  # its own validation reports that under `model`
            return values
        place = {name: shared[name] for name in _PLACE if name in shared}
        inherited = {role.value: _spread(shared, roles.get(role, {})) for role in PLAYERS}
        judge = _spread(place, values.get("evaluator", {}))
        return {**values, "roles": {**roles, **inherited}, "evaluator": judge}

    @field_validator("model")
    @classmethod
    def _is_spread(cls, _model: ModelSpec | None) -> None:
        """Drop the shared model: the roles hold its values now."""

    @model_validator(mode="after")
    def _every_role_has_a_model(self) -> Self:
        """Refuse roles that keep the default model while other roles name theirs."""
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
        if isinstance(values, Mapping) and (found := [*find_forbidden(values)]):
            raise ValueError("; ".join(f"{'.'.join(key)}{problem}" for key, problem in found))
        return values

    def key_of(self, role: Role, name: str = "model") -> str:
        """Return the key of a config that holds a role's model; where roles share it, also that of `[model]`."""
        models = {Role.EVALUATOR: self.evaluator, **{each: self.roles[each] for each in PLAYERS}}
        own = f"{self.table_of(role)}.{name}"
        is_shared = [model.model for model in models.values()].count(models[role].model) > 1
        return f"{own} or model.{name}" if is_shared else own

    def table_of(self, role: Role) -> str:
        """Return the table of a config that is a role's own."""
        return str(role) if role is Role.EVALUATOR else f"roles.{role}"

    @property
    def key_blocks(self) -> set[str]:
        """Names of the Prefect blocks that hold keys."""
        declared = [self.evaluator, *(self.roles[role] for role in PLAYERS)]
        return {model.api_key_block for model in declared if model.api_key_block}

    def with_keys_from(self, variables: Mapping[str, str]) -> Self:
        """Return the spec with each block replaced by the environment variable that now holds its key."""

        def replace_block(model: M) -> M:
            if model.api_key_block is None:
                return model
            return model.model_copy(update={"api_key_block": None, "api_key_env": variables[model.api_key_block]})

        roles = self.roles.changed(lambda _, own: replace_block(own))
        return self.model_copy(update={"roles": roles, "evaluator": replace_block(self.evaluator)})

    def as_config(self) -> dict[str, Any]:
        """Return the whole spec as plain JSON values, as in the manifest."""
        return self.model_dump(mode="json")
