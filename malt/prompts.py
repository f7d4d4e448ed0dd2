"""Prompt sets: text files under `prompts/<set>/<role>/`, filled strictly; a set's digest is in every manifest."""

from dataclasses import dataclass
from pathlib import Path

from malt.llm.completion import Message
from malt.spec import Role


@dataclass(frozen=True)
class PromptSet:
    """The prompts of all four roles."""

    name: str
    folder: Path
    digests: dict[str, str]
    """SHA-256 of every prompt file, by its path below the folder."""

    def messages(self, role: Role, **slots: str) -> tuple[Message, ...]:
        """Return what a role sees: system text, example turns, and the user text filled with `slots`."""
        raise PromptSetUnfinished(role, slots)


class PromptSetUnfinished(Exception):
    """Placeholder while the module is written."""
