"""One stage of one role with TRL's trainers: from the last whole checkpoint where there is one, to the trained weights.

Only the training process imports this: it imports torch.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from malt.config.train import DpoSettings, Stage
from malt.datasets.publish.folders import sync_tree
from malt.errors import MaltError
from malt.models.manifest import LossPoint, StageResult
from malt.training.job import RoleJob
from malt.training.rows import Measured, settings_of

Tell = Callable[[Mapping[str, Any]], None]
FINAL = "final"
WHOLE = "whole"
"""A checkpoint without this file was cut off while it was written."""
UPPER = "layers"


class Stopped(Exception):  # noqa: N818 - it is no error
    """Training was asked to stop, and has left a checkpoint."""


class Watch(TrainerCallback):
    """Tells of every step, and saves a checkpoint now and then, and at once when it is asked to stop."""

    def __init__(
        self, job: RoleJob, stage: Stage, found: Measured, tell: Tell, is_stopping: Callable[[], bool]
    ) -> None:
        self.job, self.stage, self.tell, self.is_stopping = job, stage, tell, is_stopping
        self.tokens = found.tokens * settings_of(job, stage).epochs
        self.saved_at = self.started = time.monotonic()
        self.first_step: int | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Note where this process began."""
        if self.first_step is None:
            self.first_step, self.started = state.global_step, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Ask for a checkpoint where it is time for one."""
        is_due = time.monotonic() - self.saved_at >= self.job.train.checkpoint_s
        if self.is_stopping():
            control.should_save = control.should_training_stop = True
        elif is_due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Seal the checkpoint that was just written, and remove those before it."""
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sync_tree(newest)
        (newest / WHOLE).touch()
        sync_tree(newest)
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != newest:
                shutil.rmtree(other)
        self.saved_at = time.monotonic()
        self.tell({"event": "checkpoint", "stage": self.stage, "step": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: object) -> None:  # noqa: ANN401, ARG002
        """Tell of a step: its loss, how fast it goes, and how long it will take."""
        if logs and "loss" in logs:
            done = state.global_step - (self.first_step or 0)
            took = max(time.monotonic() - self.started, 1e-9)
            rate = done / state.max_steps * self.tokens / took
            left = (state.max_steps - state.global_step) * took / max(done, 1)
            point = point_of(state.global_step, logs)
            told = {"event": "step", "stage": self.stage, "steps": state.max_steps, **point.model_dump()}
            self.tell({**told, "tokens_per_s": round(rate, 1), "left_s": round(left, 1)})


def train_stage(job: RoleJob, stage: Stage, before: Path | None, found: Measured, tokenizer: Any,  # noqa: ANN401
                tell: Tell, is_stopping: Callable[[], bool]) -> StageResult:  # fmt: skip
    """Train one stage on `before` (the stage before it, or None: the base). Raises `Stopped` when it was asked to."""
    place = job.work / stage
    place.mkdir(exist_ok=True)
    checkpoint = last_whole(place)
    watch = Watch(job, stage, found, tell, is_stopping)
    trainer = trainer_for(job, stage, before, found, tokenizer, place, watch)
    if len(trainer.train_dataset) != len(found.rows):
        raise MaltError(f"{job.role}: of {len(found.rows)} {stage} rows the trainer took {len(trainer.train_dataset)}; "
                        "nothing was trained. Report this with the dataset's version")  # fmt: skip
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    wall_s = time.monotonic() - started
    if trainer.state.global_step < trainer.state.max_steps:
        note_time(place, wall_s)
        raise Stopped
    save(trainer.model, place / FINAL)
    return result_of(job, stage, found, trainer.state, [*noted_times(place), wall_s])


def trainer_for(job: RoleJob, stage: Stage, before: Path | None, found: Measured, tokenizer: Any, place: Path,  # noqa: ANN401
                watch: Watch) -> Any:  # noqa: ANN401 # fmt: skip
    """Make TRL's trainer for a stage. DPO's reference is a frozen copy of what it begins with."""
    settings = settings_of(job, stage)
    model = model_for(job, before, settings.seed)
    common = {
        "model": model,
        "processing_class": tokenizer,
        "train_dataset": Dataset.from_list(found.rows),
        "callbacks": [watch],
    }
    arguments = arguments_of(job, stage, len(found.rows), place)
    if isinstance(settings, DpoSettings):
        reference = None if job.train.adapter == "lora" else model_for(job, before, settings.seed)
        return DPOTrainer(args=DPOConfig(**arguments, beta=settings.beta), ref_model=reference, **common)
    return SFTTrainer(args=SFTConfig(**arguments), **common)


def arguments_of(job: RoleJob, stage: Stage, rows: int, place: Path) -> dict[str, Any]:
    """Return the trainer's arguments; lengths were looked at before, so nothing is cut or dropped by it."""
    settings, has_gpu = settings_of(job, stage), torch.cuda.is_available()
    at_once = min(settings.rows_at_once or settings.batch_size, settings.batch_size)
    steps = max(1, round(settings.epochs * -(-rows // settings.batch_size)))
    return {
        "output_dir": str(place),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": -(-settings.batch_size // at_once),
        "max_length": None,
        "seed": settings.seed,
        "warmup_steps": int(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "lr_scheduler_type": "cosine",
        "bf16": job.train.dtype == "bfloat16",
        "use_cpu": not has_gpu,
        "gradient_checkpointing": job.train.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": has_gpu,
        "trust_remote_code": False,
    }


def model_for(job: RoleJob, before: Path | None, seed: int) -> Any:  # noqa: ANN401 - transformers is not typed
    """Load what a stage begins with: the base with a new adapter, or what the stage before it made."""
    set_seed(seed)
    is_whole = job.train.adapter == "full"
    folder = before if is_whole and before else job.base.folder
    dtype = torch.float32 if is_whole else getattr(torch, job.train.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if is_whole:
        return model
    if before:
        return PeftModel.from_pretrained(model, before, is_trainable=True)
    return get_peft_model(model, lora_of(job, model))


def lora_of(job: RoleJob, model: Any) -> LoraConfig:  # noqa: ANN401
    """Return the adapter's config: every linear layer but the output, of all blocks or the upper ones."""
    head = model.get_output_embeddings()
    linear = {name.rpartition(".")[2] for name, module in model.named_modules()
              if isinstance(module, torch.nn.Linear) and module is not head}  # fmt: skip
    depth, wanted = model.config.num_hidden_layers, job.train.lora.layers
    upper = None if wanted is None or wanted >= depth else list(range(depth - wanted, depth))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=job.train.lora.rank,
        lora_alpha=job.train.lora.alpha,
        lora_dropout=job.train.lora.dropout,
        target_modules=sorted(linear),
        layers_to_transform=upper,
        layers_pattern=UPPER if upper else None,
    )


def save(model: Any, place: Path) -> None:  # noqa: ANN401
    """Write trained weights as safetensors; at once, or not at all."""
    staging = place.with_name(f".{place.name}")
    shutil.rmtree(staging, ignore_errors=True)
    chosen = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(staging, safe_serialization=True, **chosen)
    sync_tree(staging)
    shutil.rmtree(place, ignore_errors=True)
    staging.rename(place)


def last_whole(place: Path) -> Path | None:
    """Return the newest checkpoint that was not cut off, and remove those that were."""
    whole = []
    for checkpoint in place.glob("checkpoint-*"):
        if (checkpoint / WHOLE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def result_of(job: RoleJob, stage: Stage, found: Measured, state: Any, times: list[float]) -> StageResult:  # noqa: ANN401
    """Say what a stage did."""
    points = tuple(point_of(logs["step"], logs) for logs in state.log_history if "loss" in logs)
    return StageResult(
        stage=stage,
        rows=job.files[stage].rows,
        trained=len(found.rows),
        lost=found.lost,
        tokens=found.tokens,
        steps=state.max_steps,
        loss_first=points[0].loss,
        loss_last=points[-1].loss,
        losses=points,
        wall_s=round(sum(times), 1),
        checkpoints=len(times) - 1,
    )


def point_of(step: int, logs: Mapping[str, Any]) -> LossPoint:
    """Read one of the trainer's log lines."""
    return LossPoint(
        step=step, loss=logs["loss"], accuracy=logs.get("rewards/accuracies"), margin=logs.get("rewards/margins")
    )


def note_time(place: Path, wall_s: float) -> None:
    """Keep how long training took until it was interrupted."""
    with (place / "times.txt").open("a") as file:
        file.write(f"{wall_s:.3f}\n")


def noted_times(place: Path) -> list[float]:
    """Return how long training took before each interruption that it could tell of."""
    file = place / "times.txt"
    return [float(line) for line in file.read_text().split()] if file.exists() else []
