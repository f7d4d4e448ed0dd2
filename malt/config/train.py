"""TrainSpec: settings of `malt train`. Not part of a dataset's identity, nor of any request's key."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from malt.config.base import Declared, wrap_single
from malt.config.roles import PLAYERS, TRAJECTORY, declare_roles

Stage = Literal["sft", "dpo"]


Stages = Annotated[tuple[Stage, ...], BeforeValidator(wrap_single, tuple[Stage, ...] | Stage)]


class StageSettings(Declared):
    """Settings of one training stage."""

    learning_rate: float = Field(2e-4, gt=0)
    """Highest learning rate; it falls to 0 along a cosine."""
    epochs: float = Field(2.0, gt=0)
    """Number of passes over the rows."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimiser step."""
    rows_at_once: int | None = Field(None, ge=1)
    """Rows in memory at once; gradients are accumulated over the batch. Empty: the whole batch."""
    max_length: int = Field(2048, ge=16)
    """Longest row in tokens, prompt and completion together."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """Rows longer than max_length: refuse to train, or drop and count them."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest gradient norm of a step; larger gradients are scaled down to it."""
    seed: int = 0
    """Seed of the adapter's first weights and of the rows' order: equal seeds give equal weights on one machine."""


class SftSettings(StageSettings):
    """Supervised fine-tuning on a role's good texts; the loss counts the completion alone."""


class DpoSettings(StageSettings):
    """Direct preference optimisation; the reference model is the role's own SFT checkpoint."""

    learning_rate: float = Field(5e-6, gt=0)
    """Highest learning rate; it falls to 0 along a cosine."""
    epochs: float = Field(1.0, gt=0)
    """Number of passes over the pairs."""
    beta: float = Field(0.2, gt=0)
    """Strength of the pull towards the reference model: higher values let the model move away less."""


class LoraSettings(Declared):
    """Settings of the LoRA adapter."""

    rank: int = Field(16, ge=1)
    """Rank of the adapter's matrices. vLLM serves ranks up to 16 unless --max-lora-rank is set."""
    alpha: int = Field(32, ge=1)
    """Scale of the adapter: its output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of the adapter's inputs that are dropped at random in SFT."""
    layers: int | None = Field(None, ge=1)
    """Number of upper layers with an adapter; the backward pass ends below them. Empty: all layers."""


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
    """Model to train: `embedded`, embedded/<path.gguf>, a folder with safetensors, or a model's name on the Hub."""


class TrainSpec(_TrainedRoles):
    """Settings of `malt train`: base model, stages of each role, and settings of each stage."""

    adapter: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter, `full` all weights."""
    lora: LoraSettings = Field(default_factory=LoraSettings)
    """Settings of the LoRA adapter."""
    sft: SftSettings = Field(default_factory=SftSettings)
    """Settings of supervised fine-tuning."""
    dpo: DpoSettings = Field(default_factory=DpoSettings)
    """Settings of direct preference optimisation."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the base's weights; the trained weights are kept as float32."""
    gradient_checkpointing: bool = False
    """Compute activations twice rather than keep them: less memory, a third more time."""
    checkpoint_s: float = Field(60.0, ge=0)
    """Seconds between checkpoints, from which training resumes after an interruption. Does not change the weights."""

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
