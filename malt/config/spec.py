"""RunSpec: what a dataset is, declared. The TOML file, the Prefect form and the manifest are this one model."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from malt.config.base import Declared
from malt.config.secret_scan import (
    BLOCK,
    PASSWORD_IN_URL,
    VARIABLE,
    find_forbidden,
    match_name,
    match_text,
    schema_without_keys,
)
from malt.config.train import TrainSpec


class Role(StrEnum):
    """The three that are trained, in the order they speak, and the one that grades them."""

    GENERATOR = "generator"
    VERIFIER = "verifier"
    REFINER = "refiner"
    EVALUATOR = "evaluator"


class Part(NamedTuple):
    """What one trained role writes in a trajectory."""

    role: Role
    writes: str
    """Prompt slot under which all later roles see its text."""


TRAJECTORY = (
    Part(Role.GENERATOR, writes="solution"),
    Part(Role.VERIFIER, writes="verification"),
    Part(Role.REFINER, writes="refinement"),
)
"""The trained roles in the order they speak; each is asked once for every text of the one before it."""

PLAYERS = tuple(part.role for part in TRAJECTORY)
"""The trained roles; a node at depth d of a tree is played by `PLAYERS[d - 1]`."""


def slots_of(role: Role) -> tuple[str, ...]:
    """Return what a role's prompt may name. The reference answer is the evaluator's alone."""
    if role not in PLAYERS:
        return ("question", "ground_truth", "answer")
    return ("question", *(part.writes for part in TRAJECTORY[: PLAYERS.index(role)]))


GraderKind = Literal["llm", "exact", "contains", "number", "math", "choice", "python"]
GraderKinds = Annotated[tuple[GraderKind, ...], Field(min_length=1)]


def _as_list(value: object) -> object:
    """Let a single value be written without brackets."""
    return [value] if isinstance(value, str) else value


class QuestionSource(Declared):
    """Where the questions come from and how to read them."""

    source: str = Field(min_length=1)
    """File with one question a row: .jsonl .json .csv .parquet; a path, URL, s3:// or hf://datasets/… address.

    A folder, or a path or address with `*` in it, means all such files there."""
    format: Literal["auto", "gsm8k", "math", "csqa", "plain"] = "auto"
    """How the reference answer is written in its column."""
    limit: int | None = Field(None, ge=1)
    """Take this many questions; all of them when empty."""
    shuffle_seed: int | None = None
    """Shuffle before the limit: the same seed and file give the same sample."""
    question: str | None = None
    """Column of the question; empty: `question`, else the benchmark's own name for it."""
    ground_truth: str | None = None
    """Column of the reference answer; empty: `ground_truth`, else the benchmark's own name for it."""
    id: str | None = None
    """Column of the question's id; empty: `id` where there is one, else derived from the content."""
    choices: str | None = None
    """Column of the choices; empty: `choices` where there is one."""


def check_address(api_base: str | None) -> str | None:
    """Refuse an address without a scheme: it would be tried, and tried again."""
    if api_base is not None and not api_base.startswith(("http://", "https://")):
        raise ValueError(f"{api_base!r} is no address; write http://HOST:PORT/v1, or https://…")
    return api_base


class Fallback(Declared):
    """Another model, and where it is served; it samples as the role does whose fallback it is."""

    model: str = Field(min_length=1)
    """A LiteLLM name, or `embedded`."""
    api_base: str | None = Field(None, json_schema_extra={"not": match_text(PASSWORD_IN_URL)})
    """Empty: where the role's own model is served, if both names begin with the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Empty: the role's own, where that is the role's own address too."""

    @field_validator("api_base")
    @classmethod
    def _has_a_scheme(cls, api_base: str | None) -> str | None:
        return check_address(api_base)


def _as_fallbacks(value: object) -> object:
    """Let a fallback be written as a name alone."""
    return [{"model": each} if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


class ModelSpec(Declared):
    """A model, where it is served, and how it samples."""

    first: ClassVar[tuple[str, ...]] = ("model", "temperature", "max_tokens")

    model: str = Field("embedded", min_length=1)
    """`embedded`, a model version (NAME@v2), or a LiteLLM name: openai/…, groq/…, ollama_chat/…, hosted_vllm/…"""
    temperature: float | None = Field(0.3, ge=0, le=2)
    """Sampling temperature; empty: the provider's default."""
    max_tokens: int | None = Field(1024, ge=1)
    """Longest completion in tokens; one that reaches it is truncated."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Nucleus sampling; empty: the provider's default."""
    seed: int | None = None
    """Base seed; every request derives its own from it. Empty: none is sent."""
    timeout_s: float = Field(120.0, gt=0)
    """Seconds one request may take once it is sent; waiting for a free place is not counted."""
    extra: Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object", **schema_without_keys()})] = Field({})
    """Further parameters, passed to the provider as they are."""
    api_base: str | None = Field(None, json_schema_extra={"not": match_text(PASSWORD_IN_URL)})
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds the key; never the key."""
    api_key_block: str | None = Field(None, json_schema_extra=match_name(BLOCK))
    """Name of the Prefect Secret block that holds the key, in place of `api_key_env`; read by flows alone."""
    fallbacks: Annotated[tuple[Fallback, ...], BeforeValidator(_as_fallbacks, tuple[Fallback | str, ...])] = ()
    """Models to ask, in this order, for what this one cannot be brought to answer. No part of its answers' keys."""
    weights: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Digest of its weights, in its answers' keys in place of the name; found for model versions and GGUF files."""

    @field_validator("api_base")
    @classmethod
    def _has_a_scheme(cls, api_base: str | None) -> str | None:
        return check_address(api_base)

    @model_validator(mode="after")
    def _key_is_in_one_place(self) -> Self:
        if self.api_key_env and self.api_key_block:
            raise ValueError("api_key_env and api_key_block both say where the key is; set one of them")
        return self

    @property
    def backups(self) -> "tuple[ModelSpec, ...]":
        """The fallbacks as models of their own."""
        return tuple(self._backup(fallback) for fallback in self.fallbacks)

    def _backup(self, fallback: Fallback) -> "ModelSpec":
        """Declare a fallback; a key goes to no address but its own."""
        is_near = fallback.api_base is None and provider_in(fallback.model) == provider_in(self.model)
        place = {
            "api_base": self.api_base if is_near else fallback.api_base,
            "api_key_env": fallback.api_key_env or (self.api_key_env if is_near else None),
            "api_key_block": self.api_key_block if is_near and fallback.api_key_env is None else None,
            "weights": None,
        }
        return self.model_copy(update={"model": fallback.model, **place, "fallbacks": ()})

    @property
    def identity(self) -> str:
        """What its answers' keys know it by: the digest of its weights, else its name."""
        return self.model if self.weights is None else f"sha256:{self.weights}"

    @property
    def sampling(self) -> dict[str, JsonValue]:
        """What shapes the text beside model and messages; part of every completion's key. Unset values are left out."""
        values: dict[str, JsonValue] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "top_p": self.top_p,
            "seed": self.seed,
            "extra": self.extra or None,
        }
        return {name: value for name, value in values.items() if value is not None}


M = TypeVar("M", bound=ModelSpec)


def provider_in(model: str) -> str:
    """Return the provider's part of a model's name."""
    return model.partition("/")[0]


class RoleSpec(ModelSpec):
    """One trained role."""

    first: ClassVar[tuple[str, ...]] = ("model", "samples", "temperature", "max_tokens")

    samples: int = Field(3, ge=1, le=64)
    """Branching: how many times this role answers each of its parents."""


class Roles(Declared):
    """Who plays the three trained roles."""

    generator: RoleSpec = Field(default_factory=RoleSpec)
    """Answers the question."""
    verifier: RoleSpec = Field(default_factory=RoleSpec)
    """Criticises an answer."""
    refiner: RoleSpec = Field(default_factory=RoleSpec)
    """Answers again, given an answer and a critique."""

    def __getitem__(self, role: Role) -> RoleSpec:
        """Return the declaration of one trained role."""
        spec: RoleSpec = getattr(self, role.value)
        return spec

    @property
    def branching(self) -> tuple[int, ...]:
        """Children per node at each level: generations, critiques of each, refinements of each critique."""
        return tuple(self[role].samples for role in PLAYERS)


class EvaluatorSpec(ModelSpec):
    """How the leaves are graded."""

    first: ClassVar[tuple[str, ...]] = ("kind", "model", "temperature", "max_tokens", "scope")

    kind: Annotated[tuple[GraderKind, ...], BeforeValidator(_as_list, GraderKinds | GraderKind)] = ()
    """Graders in order; the first that can decide does. There is no default: a run is refused without one."""
    temperature: float | None = Field(0.1, ge=0, le=2)
    """Sampling temperature of the judge; empty: the provider's default."""
    scope: Literal["leaves", "all"] = "leaves"
    """What is judged: `all` adds the generator's and verifier's texts, for their own evaluation columns."""
    correctness_weight: float = Field(0.5, ge=0)
    """Weight of the judge's correctness score; the two weights are scaled to sum to one."""
    reasoning_weight: float = Field(0.5, ge=0)
    """Weight of the judge's reasoning score."""
    function: str | None = Field(None, pattern=r"^[\w.]+:[\w.]+$")
    """For kind `python`: `module:function`, called with (question, ground_truth, answer)."""
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
    decontaminate: Annotated[tuple[str, ...], BeforeValidator(_as_list, tuple[str, ...] | str)] = ()
    """Test sets, as question files; a question that shares a run of words with one of theirs gives no rows."""
    decontaminate_words: int = Field(13, ge=5)
    """How many words in a row are an overlap with a test set."""
    duplicate_questions: Literal["drop", "keep"] = "drop"
    """Questions that ask nearly word for word, with the same numbers, what an earlier one asks."""
    flawed_texts: Literal["drop", "keep"] = "drop"
    """Texts that are truncated, empty or refused: they would teach just that."""
    leaks: Literal["drop", "keep"] = "drop"
    """Critiques and refinements that quote the reference answer at length, though nothing they saw holds it."""
    identical_pairs: Literal["drop", "keep"] = "drop"
    """Pairs of texts that are the same but for case and space."""
    max_similarity: float = Field(0.98, ge=0, le=1)
    """Leave out pairs of texts more alike than this that answer alike, with the same numbers; 1: none."""
    same_answer: Annotated[tuple[Role, ...], BeforeValidator(_as_list, tuple[Role, ...] | Role)] = (Role.REFINER,)
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
        if set(roles) - {Role.GENERATOR, Role.REFINER}:
            raise ValueError("only the generator and the refiner give final answers")
        return roles


class PlayerSpec(Declared):
    """Who plays a role in one system: what is set here takes the place of what the config declares."""

    model: str | None = Field(None, min_length=1)
    """Another model, by its name; `models/NAME@v3` or `NAME@v3` is a model version."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Another sampling temperature."""
    max_tokens: int | None = Field(None, ge=1)
    """Another longest completion."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Another nucleus sampling."""
    seed: int | None = None
    """Another base seed."""
    api_base: str | None = Field(None, json_schema_extra={"not": match_text(PASSWORD_IN_URL)})
    """Where the model is served; empty: as the role's own model, if both names begin with the same provider."""
    api_key_env: str | None = Field(None, json_schema_extra=match_name(VARIABLE))
    """Name of the environment variable that holds its key; empty: the role's own, where that is the place too."""

    def plays(self, role: RoleSpec) -> RoleSpec:
        """Return a role as this player plays it; a key goes to no address but its own."""
        changed = {name: getattr(self, name) for name in self.model_fields_set}
        if self.model is not None:
            changed["weights"] = None
        if self.model is None or provider_in(self.model) == provider_in(role.model):
            return role.model_copy(update=changed)
        elsewhere: dict[str, object] = dict.fromkeys(("api_base", "api_key_env", "api_key_block"))
        elsewhere |= {"extra": {}, "fallbacks": ()}
        return role.model_copy(update={**elsewhere, **changed})


class SystemSpec(Declared):
    """Who plays each role in one of the systems that are compared; left empty, as the config declares."""

    models: str | None = Field(None, min_length=1)
    """A model version, `NAME@v3`, that plays all roles that it has."""
    generator: PlayerSpec | None = None
    """Who answers."""
    verifier: PlayerSpec | None = None
    """Who criticises."""
    refiner: PlayerSpec | None = None
    """Who answers again."""
    roles: tuple[Literal["generator", "verifier", "refiner"], ...] = ("generator", "verifier", "refiner")
    """Who takes part. Without a verifier the refiner sees an empty critique; without a refiner the answer is the one
    that the verifier states, else the generator's."""

    @field_validator("roles")
    @classmethod
    def _someone_answers(cls, roles: tuple[str, ...]) -> tuple[str, ...]:
        if "generator" not in roles or len(set(roles)) < len(roles):
            raise ValueError("the generator always takes part, and every role once: such as [generator, refiner]")
        return roles


def paper_systems(trained: str | None) -> dict[str, SystemSpec]:
    """Return the systems of the paper's tables: untrained, STaR and MALT, each role untrained, and roles left out."""
    whole = SystemSpec(models=trained)
    left_out = {
        "G": SystemSpec(models=trained, roles=("generator",)),
        "G+V": SystemSpec(models=trained, roles=("generator", "verifier")),
        "G+R": SystemSpec(models=trained, roles=("generator", "refiner")),
    }
    if trained is None:
        return {"G+V+R": whole, **left_out}
    player = PlayerSpec(model=trained)
    untrained = {
        "generator-untrained": SystemSpec(verifier=player, refiner=player),
        "verifier-untrained": SystemSpec(generator=player, refiner=player),
        "refiner-untrained": SystemSpec(generator=player, verifier=player),
    }
    return {"untrained": SystemSpec(), "star": SystemSpec(generator=player), "malt": whole, **untrained, **left_out}


class TournamentSpec(Declared):
    """Models for each role; every combination is a system. A role without a list is played as the config declares."""

    generator: tuple[PlayerSpec, ...] = ()
    """Who may answer."""
    verifier: tuple[PlayerSpec, ...] = ()
    """Who may criticise."""
    refiner: tuple[PlayerSpec, ...] = ()
    """Who may answer again."""

    @field_validator("*", mode="before")
    @classmethod
    def _names_alone(cls, players: object) -> object:
        """Let a player be written as a name alone."""
        return (
            [{"model": one} if isinstance(one, str) else one for one in players]
            if isinstance(players, list)
            else players
        )


class EvaluateSpec(Declared):
    """Systems to compare on held-out questions. Changes no dataset, and nothing that a run asks."""

    questions: QuestionSource | None = None
    """Held-out questions; empty: the validation split that `dataset.validation` sets apart."""
    overlap: Literal["refuse", "keep"] = "refuse"
    """Questions that are, nearly word for word, among those of `[questions]`, from which systems may have learnt."""
    chains: int = Field(3, ge=1, le=64)
    """Independent chains of generator, verifier and refiner a question: the votes of MV@k."""
    seeds: tuple[int, ...] = ()
    """Repeats: each seed asks anew, in place of the roles' own seeds."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Adds a control: one more chain a question and seed at this temperature, such as 0."""
    equal_tokens: bool = False
    """Adds the single agent with as many tokens: votes are added until it has written as much as the pipeline."""
    measure: Literal["sa", "sa_mv", "ma", "ma_mv"] = "ma_mv"
    """What differences to the baseline are told of first: the generator's answer (`sa`) or the chain's (`ma`), singly
    or by vote (`_mv`)."""
    baseline: str | None = None
    """The system that the others are compared with; empty: the first."""
    models: str | None = Field(None, min_length=1)
    """For `systems = "paper"`: the model version of the trained roles; untrained are the config's own."""
    systems: dict[str, SystemSpec] = Field({})
    """Who is compared, by name; `"paper"`: the systems of the paper's tables, around `models`."""
    tournament: TournamentSpec | None = None
    """Every combination of these models is a system too."""
    race: bool = False
    """Ask more and more questions, and drop systems that cannot win any more: a best one in at most 5 % of races."""

    @model_validator(mode="before")
    @classmethod
    def _paper_names_its_systems(cls, values: object) -> object:
        if isinstance(values, Mapping) and values.get("systems") == "paper":
            return {"equal_tokens": True, **values, "systems": paper_systems(values.get("models"))}
        return values

    @model_validator(mode="after")
    def _names_can_be_told_apart(self) -> Self:
        for name in self.systems:
            if not re.fullmatch(r"[\w.+-]{1,60}", name):
                raise ValueError(f"system {name!r}: a name has letters, digits and . _ + - only")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds name one twice; each repeat needs a seed of its own")
        return self


class Limits(Declared):
    """What the run may use. Never part of a key: changing a limit changes no content."""

    max_cost_usd: float | None = Field(None, ge=0)
    """Hard cap on this run's spending; requests in flight are reserved at their worst case."""
    max_tokens_total: int | None = Field(None, ge=0)
    """Hard cap on this run's tokens, prompt and completion together; reserved in the same way."""
    max_in_flight: int = Field(64, ge=1)
    """Requests under way at once, per endpoint."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Per endpoint."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Per endpoint, prompt and completion together."""
    _sharers: int = PrivateAttr(1)

    @property
    def capped(self) -> bool:
        """Whether the run may spend only so much."""
        return self.max_cost_usd is not None or self.max_tokens_total is not None

    @property
    def most_shares(self) -> int:
        """Among how many processes they can be shared out: each needs a request in flight, and one a minute."""
        a_minute = self.max_in_flight if self.requests_per_minute is None else int(self.requests_per_minute)
        return max(1, min(self.max_in_flight, a_minute))

    @property
    def sharers(self) -> int:
        """How many processes have such a share; what an endpoint tells of its limits is for all of them."""
        return self._sharers

    def shares(self, processes: int, workers: int = 1) -> "tuple[Limits, ...]":
        """Return what each of at most `most_shares` processes may use, so that together they stay inside.

        Counts are shared out whole: 8 among 3 are 3, 3 and 2. Under a cap each is the smallest: whichever batches a
        process gets then, it keeps one account for them all. A cluster may have more `workers` than shares; a batch
        lands on any, and so each has an account.
        """
        accounts = max(processes, workers)
        if accounts == 1:
            return (self,)
        numbers = [processes - 1] * processes if self.capped else range(processes)
        return tuple(self._share(number, processes, accounts) for number in numbers)

    def _share(self, number: int, processes: int, accounts: int) -> "Limits":
        def part(limit: float | None) -> float | None:
            return None if limit is None else limit / processes

        def whole(limit: float | None) -> int | None:
            return None if limit is None else int(limit) // processes + (number < int(limit) % processes)

        return Limits(
            max_cost_usd=None if self.max_cost_usd is None else self.max_cost_usd / accounts,
            max_tokens_total=None if self.max_tokens_total is None else self.max_tokens_total // accounts,
            max_in_flight=whole(self.max_in_flight) or 1,
            requests_per_minute=whole(self.requests_per_minute) or part(self.requests_per_minute),
            tokens_per_minute=part(self.tokens_per_minute),
        ).among(processes)

    def among(self, processes: int) -> "Limits":
        """Return these as the limits that each of some processes has."""
        limits = self.model_copy()
        limits._sharers = processes
        return limits


class RunOptions(Declared):
    """How the run is carried out. Never part of a key."""

    mode: Literal["direct", "batch"] = "direct"
    """`batch`: a level of all trees at once through OpenAI's batch API, at half price, within a day each; models that
    have none are asked directly."""
    wait: bool = True
    """In batch mode: stay until all batches have ended. Off: hand in, collect what is there, and end; run again."""
    tracking: Literal["auto", "branch", "shard"] = "auto"
    """What a Prefect task run is: an expansion of a node (`branch`), a batch of questions (`shard`); auto: by size."""
    task_runner: str = Field("threads", pattern=r"^(threads|processes|dask|ray|tcp://.+)$")
    """threads, processes, dask, ray, or tcp://… of a Dask scheduler."""
    on_incomplete: Literal["publish", "fail"] = "publish"
    """When branches failed: publish the complete trees, or publish nothing."""

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.mode == "batch" and (self.task_runner != "threads" or self.tracking == "branch"):
            raise ValueError('mode = "batch" asks level by level, in one process; leave task_runner and tracking out')
        if self.mode == "direct" and not self.wait:
            raise ValueError('wait = false (--no-wait) is for mode = "batch"; leave it out, or set that mode')
        return self


_PLACE = ("model", "weights", "api_base", "api_key_env", "api_key_block", "fallbacks", "extra", "timeout_s")
"""What `[model]` says of where a model is served, and not of how it samples: the judge takes this alone."""


def _is_refused(model: Mapping[str, object]) -> bool:
    try:
        ModelSpec.model_validate(model)
    except ValidationError:
        return True
    return False


def _inherit(shared: Mapping[str, Any], own: object) -> object:
    """Return a role's table with what it leaves to `[model]`."""
    if not isinstance(own, Mapping):
        return own
    provider = provider_in(str(own.get("model") or shared.get("model", "embedded")))
    is_elsewhere = "api_base" in own or provider != provider_in(str(shared.get("model", "embedded")))
    keys = ("api_key_env", "api_key_block")
    left_out = {*(_PLACE[1:] if is_elsewhere else ()), *(keys if any(key in own for key in keys) else ())}
    return {**{name: value for name, value in shared.items() if name not in left_out}, **own}


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

    @model_validator(mode="before")
    @classmethod
    def _spread_model(cls, values: object) -> object:
        """Write `[model]` into every role."""
        if not isinstance(values, Mapping) or not isinstance(values.get("model"), Mapping):
            return values
        shared, roles = values["model"], values.get("roles", {})
        if not isinstance(roles, Mapping) or _is_refused(shared):  # which is told where it stands
            return values
        place = {name: shared[name] for name in _PLACE if name in shared}
        inherited = {role: _inherit(shared, roles.get(role, {})) for role in map(str, PLAYERS)}
        judge = _inherit(place, values.get("evaluator", {}))
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
            raise ValueError(
                'growth = "adaptive" decides after every answer, run.mode = "batch" asks a level at a time: '
                'set growth = "full", or mode = "direct"'
            )
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

        roles = Roles(**{role.value: keyed(self.roles[role]) for role in PLAYERS})
        return self.model_copy(update={"roles": roles, "evaluator": keyed(self.evaluator)})

    def as_config(self) -> dict[str, Any]:
        """Return the whole spec as plain JSON values, as the manifest keeps it."""
        return self.model_dump(mode="json")
