"""A judge's prompt that a subclass sets: pairs of role and template, or an object with LangChain's `format_messages`.

Templates name the judge's slots as `{question}` or `{{question}}`; in the first style a brace is written twice.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from malt.errors import PromptError
from malt.llm.request import Message

_ROLES = {"system": "system", "human": "user", "user": "user", "ai": "assistant", "assistant": "assistant"}
_SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@runtime_checkable
class FormatsMessages(Protocol):
    """What LangChain's chat prompt templates do."""

    def format_messages(self, **slots: Any) -> Sequence[Any]:  # noqa: ANN401 - LangChain's own signature
        """Return messages, each with a `type` and a `content`."""
        ...


EvalPrompt: TypeAlias = str | Sequence[tuple[str, str]] | FormatsMessages


def render_eval_prompt(prompt: EvalPrompt, slots: Mapping[str, str]) -> tuple[Message, ...]:
    """Fill a judge's own prompt. Raises `PromptError` for one that cannot be filled."""
    try:
        if isinstance(prompt, FormatsMessages):
            return tuple(Message(_ROLES[each.type], str(each.content)) for each in prompt.format_messages(**slots))
        pairs = [("user", prompt)] if isinstance(prompt, str) else prompt
        return tuple(Message(_ROLES[role], _fill(text, slots)) for role, text in pairs)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise PromptError(
            f"LLMEvaluator: eval_prompt cannot be filled: {type(error).__name__}: {error}; give pairs such as "
            f'("system", "…"), ("human", "…"), with the slots {", ".join(f"{{{name}}}" for name in slots)}'
        ) from error


def _fill(template: str, slots: Mapping[str, str]) -> str:
    if not slots.keys().isdisjoint(_SLOT.findall(template)):
        return _SLOT.sub(lambda slot: slots[slot[1]], template)
    return template.format(**slots)
