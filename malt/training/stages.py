"""Training of one stage of one role with TRL's trainers, resumed from the last complete checkpoint where there is one.

It imports torch, so only the training process imports it.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from malt.config.train import DpoSettings, Stage, StageSettings
from malt.datasets.version.folders import sync_tree
from malt.errors import MaltError
from malt.models.version import LossPoint, StageResult
from malt.training.job import FINAL, Measured, RoleJob
from malt.training.process import Tell

_WHOLE = "whole"
"""File that records a checkpoint's progress; a checkpoint without it is incomplete."""


class Stopped(Exception):  # noqa: N818 - not an error
    """Training was stopped, and has left a checkpoint."""


class _Progress(NamedTuple):
    """Progress of a stage, as a checkpoint records it."""

    seconds: float = 0.0
    checkpoints: int = 0
    """Number of checkpoints that training was resumed from."""


class StageWork(NamedTuple):
    """Inputs of training one stage."""

    job: RoleJob
    stage: Stage
    before: Path | None
    """Weights from the stage before; None for the first stage, which begins with the base."""
    found: Measured
    tokenizer: Any

    @property
    def place(self) -> Path:
        """Folder of the stage's checkpoints, and in the end of its weights."""
        return self.job.work / self.stage

    @property
    def settings(self) -> StageSettings:
        return self.job.train.settings_of(self.stage)

    @property
    def is_full(self) -> bool:
        """Whether all weights are trained, instead of an adapter."""
        return self.job.train.adapter == "full"


class _Watch(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Reports every step; saves a checkpoint at intervals, and at once when training is to stop."""

    def __init__(self, work: StageWork, before: _Progress, tell: Tell, is_stopping: Callable[[], bool]) -> None:
        self.work, self.before, self.tell, self.is_stopping = work, before, tell, is_stopping
        self.saved_at = self.started = time.monotonic()
        self.first_step: int | None = None

    def progress(self) -> _Progress:
        """Return the stage's progress until now, including what was done before the checkpoint it resumed from."""
        return self.before._replace(seconds=self.before.seconds + time.monotonic() - self.started)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Note the step and the time at which this process began."""
        if self.first_step is None:
            self.first_step, self.started = state.global_step, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Request a checkpoint where one is due, or where training is to stop."""
        is_due = time.monotonic() - self.saved_at >= self.work.job.train.checkpoint_s
        if self.is_stopping():
            control.should_save = control.should_training_stop = True
        elif is_due and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
        """Mark the new checkpoint as complete, and remove the older ones."""
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        sync_tree(newest)
        (newest / _WHOLE).write_text(json.dumps(self.progress()))
        sync_tree(newest)
        for other in Path(args.output_dir).glob("checkpoint-*"):
            if other != newest:
                shutil.rmtree(other)
        self.saved_at = time.monotonic()
        self.tell({"event": "checkpoint", "stage": self.work.stage, "step": state.global_step})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: object) -> None:  # noqa: ANN401, ARG002
        """Report a step: its loss, the speed, and the time left."""
        if logs and "loss" in logs:
            done = state.global_step - (self.first_step or 0)
            took = max(time.monotonic() - self.started, 1e-9)
            rate = done / state.max_steps * self.work.found.tokens * self.work.settings.epochs / took
            left = (state.max_steps - state.global_step) * took / max(done, 1)
            point = _make_point(state.global_step, logs).model_dump()
            event = {"event": "step", "stage": self.work.stage, "steps": state.max_steps, **point}
            self.tell({**event, "tokens_per_s": round(rate, 1), "left_s": round(left, 1)})


def train_stage(work: StageWork, tell: Tell, is_stopping: Callable[[], bool]) -> StageResult:
    """Train one stage to its end. Raises `Stopped` where it is stopped before that."""
    work.place.mkdir(exist_ok=True)
    checkpoint = _find_checkpoint(work.place)
    watch = _Watch(work, _read_progress(checkpoint), tell, is_stopping)
    trainer = _make_trainer(work, watch)
    if len(trainer.train_dataset) != len(work.found.rows):
        taken = f"of {len(work.found.rows)} {work.stage} rows the trainer took {len(trainer.train_dataset)}"
        raise MaltError(f"{work.job.role}: {taken}; nothing was trained. Report this with the dataset's version")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Stopped
    _save(trainer.model, work.place / FINAL)
    return _describe_result(work, trainer.state, watch.progress())


def _make_trainer(work: StageWork, watch: _Watch) -> Any:  # noqa: ANN401 - transformers is not typed
    """Make TRL's trainer for a stage. DPO's reference is a frozen copy of the model that the stage begins with."""
    common = {
        "model": _load_model(work),
        "processing_class": work.tokenizer,
        "train_dataset": Dataset.from_list(work.found.rows),
        "callbacks": [watch],
    }
    if isinstance(work.settings, DpoSettings):
        reference = _load_model(work) if work.is_full else None  # for an adapter TRL makes the copy itself
        return DPOTrainer(
            args=DPOConfig(**_list_arguments(work), beta=work.settings.beta), ref_model=reference, **common
        )
    return SFTTrainer(args=SFTConfig(**_list_arguments(work)), **common)


def _list_arguments(work: StageWork) -> dict[str, Any]:
    """Return the trainer's arguments. Lengths were checked before, so the trainer has no limit of its own."""
    settings, has_gpu = work.settings, torch.cuda.is_available()
    at_once = min(settings.rows_at_once or settings.batch_size, settings.batch_size)
    steps = max(1, round(settings.epochs * -(-len(work.found.rows) // settings.batch_size)))
    return {
        "output_dir": str(work.place),
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
        "bf16": work.job.train.dtype == "bfloat16",
        "use_cpu": not has_gpu,
        "gradient_checkpointing": work.job.train.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": has_gpu,
        "trust_remote_code": False,
    }


def _load_model(work: StageWork) -> Any:  # noqa: ANN401 - transformers is not typed
    """Load the model that a stage begins with: the base with a new adapter, or the result of the stage before."""
    set_seed(work.settings.seed)
    folder = work.before if work.is_full and work.before else work.job.base.folder
    dtype = torch.float32 if work.is_full else getattr(torch, work.job.train.dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if work.is_full:
        return model
    if work.before:
        return PeftModel.from_pretrained(model, work.before, is_trainable=True)
    return get_peft_model(model, make_lora(work.job, model))


def make_lora(job: RoleJob, model: Any) -> LoraConfig:  # noqa: ANN401
    """Return the adapter's config: every linear layer but the output layer, in all blocks or only the upper ones."""
    head = model.get_output_embeddings()
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module != head)
    depth, wanted = model.config.num_hidden_layers, job.train.lora.layers
    upper = None if wanted is None or wanted >= depth else list(range(depth - wanted, depth))
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=job.train.lora.rank,
        lora_alpha=job.train.lora.alpha,
        lora_dropout=job.train.lora.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in linear}),
        layers_to_transform=upper,
        layers_pattern="layers" if upper else None,
    )


def _save(model: Any, place: Path) -> None:  # noqa: ANN401
    """Write trained weights as safetensors, atomically."""
    staging = place.with_name(f".{place.name}")
    shutil.rmtree(staging, ignore_errors=True)
    chosen = {"selected_adapters": ["default"]} if isinstance(model, PeftModel) else {}
    model.save_pretrained(staging, safe_serialization=True, **chosen)
    sync_tree(staging)
    shutil.rmtree(place, ignore_errors=True)
    staging.rename(place)


def _find_checkpoint(place: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove incomplete ones."""
    complete = []
    for checkpoint in place.glob("checkpoint-*"):
        if (checkpoint / _WHOLE).exists():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _read_progress(checkpoint: Path | None) -> _Progress:
    if checkpoint is None:
        return _Progress()
    progress = _Progress(*json.loads((checkpoint / _WHOLE).read_bytes()))
    return progress._replace(checkpoints=progress.checkpoints + 1)


def _describe_result(work: StageWork, state: Any, progress: _Progress) -> StageResult:  # noqa: ANN401
    points = tuple(_make_point(logs["step"], logs) for logs in state.log_history if "loss" in logs)
    return StageResult(
        stage=work.stage,
        rows=work.job.files[work.stage].rows,
        trained=len(work.found.rows),
        lost=work.found.lost,
        tokens=work.found.tokens,
        steps=state.max_steps,
        loss_first=points[0].loss,
        loss_last=points[-1].loss,
        losses=points,
        wall_s=round(progress.seconds, 1),
        checkpoints=progress.checkpoints,
    )


def _make_point(step: int, logs: Mapping[str, Any]) -> LossPoint:
    """Return the loss point of one of the trainer's log lines."""
    return LossPoint(
        step=step, loss=logs["loss"], accuracy=logs.get("rewards/accuracies"), margin=logs.get("rewards/margins")
    )
