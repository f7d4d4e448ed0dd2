"""MALT's exceptions, grouped by whose fault they are. The class sets the exit code of a command.

MaltError
├── InputError           the user's input is wrong: fix it and run again (exit 2)
│   ├── ConfigError      a config file, an override, a setting
│   ├── QuestionError    a question file or one of its rows
│   ├── PromptError      a prompt set
│   └── GradingError     a reference answer or a grader that cannot be used
├── StoreError           the completion store cannot be read or written (exit 2)
│   └── StoreLost        it worked when the run began, then failed for longer than a run waits (exit 3)
├── VersionError         a dataset version is missing or does not match its manifest (exit 2)
├── PushError            a version cannot be uploaded to its destination (exit 2)
│   └── PushDamaged      an uploaded file differs from the one that was sent (exit 1)
├── NothingToPublish     no tree is complete, so there is no version to make (exit 1)
├── NothingToExport      a version has no row that the format can hold (exit 1)
├── NothingToTrain       a version has no row for any stage of any role (exit 1)
├── TrainingFailed       a training process ended before it was done; its checkpoints are kept (exit 3)
├── EvaluationUnknown    the judge's reply is unreadable after two tries; in a tree a grade instead (exit 1)
├── RequestFailed        a request failed after its retries: one branch is lost, the run goes on (exit 1);
│                        defined in llm/request.py, beside the completions it keeps
└── RunStopped           the whole run must stop; its answers are saved (exit 3)
    ├── BudgetSpent      the cap set in `[limits]` is reached
    ├── PrefectLost      the Prefect server stopped answering
    ├── WorkerDied       a process that grew trees for the run was killed
    ├── EndpointDown     an endpoint stays unavailable
    └── AccountEmpty     a provider refuses requests until it is paid
"""

from collections.abc import Iterator
from contextlib import contextmanager


class MaltError(Exception):
    """Root of the hierarchy. A message says what happened, the value, where, and what to do."""

    exit_code = 2


class InputError(MaltError):
    """The user's input cannot be used."""


class ConfigError(InputError):
    """A config file, an override or a setting is wrong."""


@contextmanager
def named_place(place: str) -> Iterator[None]:
    """Begin the message of a `ConfigError` with the option, key or system that the fault is in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


class QuestionError(InputError):
    """A question file or one of its rows is wrong; names file and line."""


class PromptError(InputError):
    """A prompt set is missing, incomplete or uses an unknown slot."""


class GradingError(InputError):
    """A reference answer cannot be graded against, or a grader cannot be loaded: our data's fault, not the model's."""


class StoreError(MaltError):
    """The completion store cannot be opened, read or written."""


class StoreLost(StoreError):  # noqa: N818
    """The store worked when the run began, then failed for longer than a run waits for it."""

    exit_code = 3


class VersionError(MaltError):
    """A dataset version is missing, or is not what its manifest says."""


class PushError(MaltError):
    """A version cannot be uploaded: no access, destination unreachable, or another version is there."""


class PushDamaged(PushError):  # noqa: N818
    """An uploaded file differs from the one that was sent."""

    exit_code = 1


class NothingToPublish(MaltError):  # noqa: N818
    """No question's tree is complete, so a version would be empty."""

    exit_code = 1


class NothingToExport(MaltError):  # noqa: N818
    """A version has no row that the format can hold, so an export would be empty."""

    exit_code = 1


class NothingToTrain(MaltError):  # noqa: N818
    """A version has no row for any of the declared stages."""

    exit_code = 1


class TrainingFailed(MaltError):  # noqa: N818 - named for what happened, as RequestFailed is
    """A training process ended before it was done: killed, or out of memory. Its checkpoints are kept."""

    exit_code = 3


class EvaluationUnknown(MaltError):  # noqa: N818
    """The judge's reply is unreadable after two tries. `reply` is the second reply, whole."""

    exit_code = 1

    def __init__(self, message: str, reply: str) -> None:
        super().__init__(message)
        self.reply = reply


class RunStopped(MaltError):  # noqa: N818
    """The run cannot go on; everything paid for is in the store."""

    exit_code = 3


class BudgetSpent(RunStopped):
    """The next request could take the run over the cap set in `[limits]`."""


class PrefectLost(RunStopped):
    """The Prefect server answered when the run began, and no longer does."""


class WorkerDied(RunStopped):
    """A worker process was killed, by hand or for want of memory."""


class EndpointDown(RunStopped):
    """An endpoint has failed for so long that further requests make no sense."""


class AccountEmpty(RunStopped):
    """A provider refuses requests until it is paid: out of credit, or past a quota."""
