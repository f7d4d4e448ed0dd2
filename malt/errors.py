"""What can go wrong, by whose fault it is. The class decides how a command exits; the message is the whole story.

MaltError
├── InputError           the user's input is wrong: fix it and run again (exit 2)
│   ├── ConfigError      a config file, an override, a setting
│   ├── QuestionError    a question file or one of its rows
│   ├── PromptError      a prompt set
│   └── GradingError     a reference answer or a grader that cannot be used
├── StoreError           the completion store cannot be read or written (exit 2)
│   └── StoreLost        it could be when the run began, and then not for longer than a run waits (exit 3)
├── VersionError         a dataset version that is missing or does not hold (exit 2)
├── PushError            a version cannot be put where it was to go (exit 2)
│   └── PushDamaged      it arrived there as another than was sent (exit 1)
├── NothingToPublish     no tree is complete, so there is no version to make (exit 1)
├── NothingToExport      a version has no row of what a format takes (exit 1)
├── NothingToTrain       a version has no row for any stage of any role (exit 1)
├── TrainingFailed       a training process ended before it was done; its checkpoints are kept (exit 3)
├── EvaluationUnknown    the judge's reply cannot be read, asked twice; in a tree a grade instead (exit 1)
├── RequestFailed        a request stayed impossible after its retries: one branch is lost, the run goes on (exit 1);
│                        in llm/request.py, beside the completions it keeps
└── RunStopped           the whole run must stop; what it has is saved (exit 3)
    ├── BudgetSpent      the cap set in `[limits]` is reached
    ├── PrefectLost      the Prefect server went away, and did not come back
    ├── WorkerDied       a process that grew trees for the run was killed
    ├── EndpointDown     an endpoint stays unavailable
    └── AccountEmpty     a provider wants money before it goes on
"""


class MaltError(Exception):
    """The root. Its message says what happened, the value, where, and what to do."""

    exit_code = 2


class InputError(MaltError):
    """What the user gave cannot be used."""


class ConfigError(InputError):
    """A config file, an override or a setting is wrong."""


class QuestionError(InputError):
    """A question file or one of its rows is wrong; names file and line."""


class PromptError(InputError):
    """A prompt set is missing, incomplete or uses an unknown slot."""


class GradingError(InputError):
    """A reference answer cannot be graded against, or a grader cannot be loaded: our data's fault, not the model's."""


class StoreError(MaltError):
    """The completion store cannot be opened, read or written."""


class StoreLost(StoreError):  # noqa: N818
    """The store could be used when the run began, and then not for longer than a run waits for it."""

    exit_code = 3


class VersionError(MaltError):
    """A dataset version is missing, or is not what its manifest says."""


class PushError(MaltError):
    """A version cannot be put where it was to go: no access, out of reach, or another one is there."""


class PushDamaged(PushError):  # noqa: N818
    """A file arrived as another than was sent."""

    exit_code = 1


class NothingToPublish(MaltError):  # noqa: N818
    """No question's tree is complete, so a version would be empty."""

    exit_code = 1


class NothingToExport(MaltError):  # noqa: N818
    """A version has no row of what was asked for, so an export would be empty."""

    exit_code = 1


class NothingToTrain(MaltError):  # noqa: N818
    """A version has no row for any stage that was declared."""

    exit_code = 1


class TrainingFailed(MaltError):  # noqa: N818 - named for what happened, as RequestFailed is
    """A training process ended before it was done: killed, or out of memory. Its checkpoints are kept."""

    exit_code = 3


class EvaluationUnknown(MaltError):  # noqa: N818
    """The judge's reply cannot be read, asked twice. `reply` is the last one, whole."""

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
    """The Prefect server answered when the run began, and does not any more."""


class WorkerDied(RunStopped):
    """A worker process was killed, by hand or for want of memory."""


class EndpointDown(RunStopped):
    """An endpoint failed so long that asking on makes no sense."""


class AccountEmpty(RunStopped):
    """A provider refuses to go on before it is paid: out of credit, or past a quota."""
