"""TrainSpec: what `malt train` does with a version. No part of what a dataset is, nor of any request's key."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from malt.config.base import Declared, wrap_single
from malt.config.roles import PLAYERS, TRAJECTORY, declare_roles

Stage = Literal["sft", "dpo"]


Stages = Annotated[tuple[Stage, ...], BeforeValidator(wrap_single, tuple[Stage, ...] | Stage)]


class StageSettings(Declared):
    """How one stage trains."""

    learning_rate: float = Field(2e-4, gt=0)
    """The highest; it falls to 0 along a cosine."""
    epochs: float = Field(2.0, gt=0)
    """How often each row is seen."""
    batch_size: int = Field(16, ge=1)
    """Rows a step learns from."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows in memory at once; their gradients are added up to the batch's. Empty: the whole batch."""
    max_length: int = Field(2048, ge=16)
    """Longest row in tokens, prompt and completion together."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of longer rows: they stop the command before it trains, or are left out and counted."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Longest gradient of a step; longer ones are scaled down to it."""
    seed: int = 0
    """Of the adapter's first weights and of the rows' order: an equal seed gives equal weights on one machine."""


class SftSettings(StageSettings):
    """Supervised training on what a role said well; the loss counts the completion alone."""


class DpoSettings(StageSettings):
    """Direct preference optimisation; the reference is the role's own SFT checkpoint."""

    learning_rate: float = Field(5e-6, gt=0)
    """The highest; it falls to 0 along a cosine."""
    epochs: float = Field(1.0, gt=0)
    """How often each pair is seen."""
    beta: float = Field(0.2, gt=0)
    """How strongly the reference holds it back."""


class LoraSettings(Declared):
    """The adapter."""

    rank: int = Field(16, ge=1)
    """Rank of the adapter's matrices. vLLM serves up to 16 unless told otherwise (--max-lora-rank)."""
    alpha: int = Field(32, ge=1)
    """Scale: alpha / rank multiplies what the adapter adds."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs left out at random in SFT."""
    layers: int | None = Field(None, ge=1)
    """How many of the upper layers have one; a backward pass ends below them. Empty: all."""


@declare_roles(
    Stages,
    lambda part: Field(
        ("sft",) if part is TRAJECTORY[0] else ("sft", "dpo"), description=f"Stages of the {part.role}, in order."
    ),
)
class _TrainedRoles(Declared):
    name: str | None = Field(None, pattern=r"^[a-z0-9-]+$", max_length=100)
    """Name of the models; empty: the dataset's."""
    base: str = Field("embedded", min_length=1)
    """What is trained: `embedded`, embedded/<path.gguf>, a folder with safetensors, or a model's name on the Hub."""


class TrainSpec(_TrainedRoles):
    """What a dataset version is made into: which base, which stages for which role, and how."""

    adapter: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter, `full` all weights."""
    lora: LoraSettings = Field(default_factory=LoraSettings)
    """The adapter."""
    sft: SftSettings = Field(default_factory=SftSettings)
    """Supervised training."""
    dpo: DpoSettings = Field(default_factory=DpoSettings)
    """Preference optimisation."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Numbers of the base; what is trained is kept as 32-bit numbers."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: less memory, a third more time."""
    checkpoint_s: float = Field(60.0, ge=0)
    """Seconds between checkpoints, from which training goes on after an interruption. Changes no weight."""

    def settings_of(self, stage: Stage) -> StageSettings:
        return self.sft if stage == "sft" else self.dpo

    @model_validator(mode="after")
    def _stages_come_in_order(self) -> Self:
        chosen = {role: getattr(self, role) for role in PLAYERS}
        for role, stages in chosen.items():
            if stages not in ((), ("sft",), ("dpo",), ("sft", "dpo")):
                raise ValueError(f'train.{role} = {list(stages)}: takes [], ["sft"], ["dpo"] or ["sft", "dpo"]')
        if not any(chosen.values()):
            raise ValueError("train names no stage for any role; nothing would be trained")
        return self
