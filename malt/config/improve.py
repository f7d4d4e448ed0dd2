"""ImproveSpec: how `malt improve` goes round. No part of what a dataset is, nor of any request's key."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from malt.config.base import Declared
from malt.config.questions import QuestionSource

Threshold = Annotated[float, Field(ge=0, lt=1)]


class ImproveSpec(Declared):
    """Rounds of growing, training and evaluating; what is trained plays the next round only if it is better."""

    rounds: int = Field(2, ge=1, le=100)
    """How many rounds there are; more may follow later."""
    rows: Literal["all", "last"] = "all"
    """What a round trains on: the rows of all rounds so far, or its own. It begins with [train] base each time."""
    thresholds: tuple[Threshold, ...] = ()
    """What takes the place of credit.threshold, round by round; the last one holds for all further rounds."""
    measure: Literal["sa", "sa_mv", "ma", "ma_mv"] | None = None
    """What decides: right answers of the generator (`sa`) or the chain (`ma`), or votes (`_mv`); empty:
    evaluate.measure."""
    margin: float = Field(0.0, ge=0, lt=1)
    """Trained roles are kept if the lower bound of their gain, paired by question, is above this; 0.02: two points."""
    level: float = Field(0.95, gt=0.5, lt=1)
    """Of the interval whose lower bound decides."""
    on_no_gain: Literal["stop", "continue"] = "stop"
    """What follows a round whose roles are not kept: the end, or another round of the best so far with other seeds."""
    closing: bool = True
    """Evaluate the trained roles once more at the end, as [evaluate] says, beside the same with each role untrained."""
    beside: dict[str, QuestionSource] = Field({})
    """Further question files, by name, on which untrained and trained roles are compared at the end; none decides."""

    @model_validator(mode="after")
    def _names_are_parts_of_names(self) -> Self:
        for name in self.beside:
            if not re.fullmatch(r"[a-z0-9-]{1,40}", name):
                raise ValueError(f"beside.{name}: a name has lower-case letters, digits and hyphens")
        return self
