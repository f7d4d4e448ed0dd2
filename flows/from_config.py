"""Flow `from-config`: config file + overrides -> dataset version. It is `generate` with a short form."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from flows.generate import BRANCHES_AT_ONCE, grow_alone
from malt.config.loader import load_spec
from malt.config.roles import PLAYERS
from malt.config.secret_scan import override_without_keys
from malt.config.spec import GraderKind
from malt.engine.build import RunSummary
from tasks.run_lock import close_after_crash

Count = Annotated[int, Field(ge=0)]
Override = Annotated[str, Field(pattern="^[^=]+=", json_schema_extra=override_without_keys())]


@flow(name="from-config", flow_run_name="{config.stem}", task_runner=BRANCHES_AT_ONCE, on_crashed=[close_after_crash])
async def from_config(
    config: Path,
    questions: str = "",
    model: str = "",
    api_base: str = "",
    samples: Count = 0,
    grader: tuple[GraderKind, ...] = (),
    limit: Count = 0,
    overrides: tuple[Override, ...] = (),
) -> State[RunSummary]:
    """Grow and grade a tree for every question of a config file, then publish the complete trees.

    Args:
        config: Path of the TOML file on the worker.
        questions: Question file, folder or address. Empty: the config's.
        model: Model of generator, verifier and refiner. Empty: the config's.
        api_base: Address of that model's server. Empty: the config's.
        samples: Children of each node. 0: the config's.
        grader: Graders in order; the first that can decide gives the grade. Empty: the config's.
        limit: Number of questions to take. 0: the config's.
        overrides: Any other keys, written as for `malt run -s`: credit.threshold=0.7
    """
    common = list_overrides(questions, model, api_base, samples, grader)
    return await grow_alone(load_spec(config, [*common, *overrides], limit or None))


def list_overrides(
    questions: str, model: str, api_base: str, samples: int, grader: Sequence[GraderKind]
) -> Iterator[str]:
    """Yield the form's filled-in fields as `key=value` overrides of a config."""
    if questions:
        yield f"questions.source={json.dumps(questions)}"
    if grader:
        yield f"evaluator.kind={json.dumps(grader)}"
    for name, value in {"model": model, "api_base": api_base, "samples": samples}.items():
        yield from (f"roles.{role}.{name}={json.dumps(value)}" for role in PLAYERS if value)
