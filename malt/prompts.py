"""Prompt sets: text files under `prompts/<set>/<role>/`. Every slot must be filled; manifests record their digests.

A role has `system.md` and `user.md` (Jinja2, sandboxed) and may have `examples.jsonl`: short exchanges shown as earlier
turns. Text that siblings share comes first, so that providers' prefix caches serve them.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.sandbox import SandboxedEnvironment
from pydantic import BaseModel, ConfigDict, ValidationError

from malt.config.base import first_problem
from malt.config.roles import PLAYERS, Role, slots_of
from malt.errors import PromptError
from malt.files import MIB, read_regular_file
from malt.llm.request import Message

SLOTS: Mapping[Role, frozenset[str]] = {role: frozenset(slots_of(role)) for role in Role}
"""Slots that each role's templates may use."""

_PACKAGED_SETS = Path(__file__).parent / "_prompts"
PROJECT_SETS = Path(__file__).parent.parent / "prompts"
_MOST_BYTES = 4 * MIB

_STATEMENTS = (
    *(nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr, nodes.Compare),
    *(nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Tuple, nodes.Test, nodes.Slice, nodes.Keyword),
)
_FILTERS = ("capitalize", "default", "first", "last", "length", "lower", "title", "trim", "upper", "wordcount")
"""Filters and, above, syntax that a template may use: no loops, no growth, no access beyond its slots."""


class _Example(BaseModel):
    """One line of `examples.jsonl`: the slots of an example's user turn, and the reply that the role should give."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    slots: dict[str, str]
    reply: str


@dataclass(frozen=True, slots=True)
class _RolePrompt:
    """One role's templates, and its example turns as sent."""

    system: str
    user: str
    turns: tuple[Message, ...]


@dataclass(frozen=True)
class PromptSet:
    """Prompts of all four roles, as plain text that can be sent to another process."""

    name: str
    folder: Path
    digests: dict[str, str]
    """SHA-256 of every prompt file's text, by its path below the folder."""
    roles: Mapping[Role, _RolePrompt]

    def messages(self, role: Role, **slots: str) -> tuple[Message, ...]:
        """Return a role's messages: system text, example turns, and the user text with `slots` filled in.

        An empty `system.md` sends no system message. Raises `PromptError` unless `slots` are exactly the role's.
        """
        where = f"prompt set '{self.name}', {role.value}"
        _require_slots(slots, role, where)
        prompt = self.roles[role]
        system = _fill(prompt.system, slots, f"{where}/system.md")
        opening = (Message("system", system),) if system else ()
        return (*opening, *prompt.turns, Message("user", _fill(prompt.user, slots, f"{where}/user.md")))


def load_prompts(name_or_folder: str) -> PromptSet:
    """Read a prompt set from a folder of the user's own, or by the name of a set in this package.

    Raises `PromptError` that names the set, the file and the problem.
    """
    folder = find_set(name_or_folder)
    files: dict[Path, str] = {}
    roles = {role: _load_role(folder, role, files) for role in Role}
    digests = {path.relative_to(folder).as_posix(): _sha256(text) for path, text in sorted(files.items())}
    return PromptSet(folder.name, folder, digests, roles)


def find_set(name_or_folder: str) -> Path:
    """Return the folder of a set: an existing folder, then a packaged set, then one of the project's.

    A bare name means a folder only if that holds a role's prompts: an unrelated folder `math` hides no packaged set.
    """
    own = _expand_home(name_or_folder)
    if own.is_dir() and (len(own.parts) > 1 or any((own / role).is_dir() for role in Role)):
        return own.resolve()
    for sets in (_PACKAGED_SETS, PROJECT_SETS):
        if (sets / name_or_folder).is_dir():
            return (sets / name_or_folder).resolve()
    known = ", ".join(known_sets()) or "none"
    raise PromptError(f"prompts: no prompt set or folder {name_or_folder!r} (looked in {Path.cwd()}); sets: {known}")


def _expand_home(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise PromptError(f"prompts = {folder!r}: {error}") from error


def known_sets() -> list[str]:
    """Return the names of the sets in this package and this project."""
    folders = [path for sets in (_PACKAGED_SETS, PROJECT_SETS) if sets.is_dir() for path in sets.iterdir()]
    return sorted({path.name for path in folders if path.is_dir()})


def _load_role(folder: Path, role: Role, files: dict[Path, str]) -> _RolePrompt:
    """Read and check one role's files, and add their texts to `files`."""
    system, user, examples = (folder / role.value / name for name in ("system.md", "user.md", "examples.jsonl"))
    for path in (system, user):
        files[path] = _read_template(path, role, folder)
    if not files[user].strip():
        raise PromptError(f"{user}: the user template is empty; it must show the role its question")
    if not any(_names_in(_jinja().parse(files[path])) for path in (system, user)):
        raise PromptError(f"{user}: names none of {_join(SLOTS[role])}, so every {role.value} would see the same text")
    if examples.exists():
        files[examples] = _read_text(examples)
    return _RolePrompt(
        system=files[system].strip(),
        user=files[user].strip(),
        turns=tuple(_example_turns(files.get(examples, ""), examples, files[user].strip(), role)),
    )


def _read_template(path: Path, role: Role, folder: Path) -> str:
    """Read one template, and refuse a missing file, broken syntax, and any slot that is not the role's."""
    if not path.is_file():
        missing = path.relative_to(folder).as_posix()
        raise PromptError(f"prompt set '{folder.name}' has no {missing} (looked in {folder}); every role needs it")
    text = _read_text(path)
    tree = _parse(text, path)
    _refuse_slots(_names_in(tree) - SLOTS[role], role, path)
    _refuse_statements(tree, path)
    _fill(text, dict.fromkeys(SLOTS[role], "text"), str(path))
    return text


def _parse(text: str, path: Path) -> nodes.Template:
    try:
        return _jinja().parse(text)
    except TemplateSyntaxError as error:
        raise PromptError(f"{path}:{error.lineno}: template syntax: {error.message}") from error
    except RecursionError as error:
        raise PromptError(f"{path}: template nested too deep to be read") from error


def _names_in(tree: nodes.Template) -> set[str]:
    """Return all names in a template; Jinja2's own function would evaluate constant expressions, however large."""
    return {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}


def _refuse_statements(tree: nodes.Template, path: Path) -> None:
    """Raise `PromptError` for syntax that could run for ever, fill the memory, or reach other files and objects."""
    for node in tree.find_all(nodes.Node):
        if not _is_harmless(node):
            name = node.name if isinstance(node, nodes.Filter) else type(node).__name__.lower()
            allowed = f"slots, if, comparisons and the filters {', '.join(_FILTERS)}"
            raise PromptError(
                f"{path}: template cannot be filled: line {node.lineno} has {name!r}; it may have {allowed}"
            )


def _is_harmless(node: nodes.Node) -> bool:
    """Whether a template node renders the same text each time; `slot['upper']` would render a memory address."""
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Slice | nodes.Neg) or isinstance(getattr(node.arg, "value", None), int)
    return isinstance(node, _STATEMENTS) or (isinstance(node, nodes.Filter) and node.name in _FILTERS)


def _refuse_slots(unknown: set[str], role: Role, path: Path) -> None:
    if "ground_truth" in unknown and role in PLAYERS:
        raise PromptError(f"{path}: names the reference answer {{{{ground_truth}}}}, which no {role.value} may see")
    if unknown:
        raise PromptError(f"{path}: unknown slot {_join(unknown)}; a {role.value} has {_join(SLOTS[role])}")


def _require_slots(slots: Mapping[str, str], role: Role, where: str) -> None:
    if slots.keys() != SLOTS[role]:
        given = _join(slots) or "none"
        raise PromptError(f"{where}: slots given: {given}; a {role.value} takes exactly {_join(SLOTS[role])}")


def _example_turns(text: str, path: Path, user: str, role: Role) -> Iterator[Message]:
    """Yield an `examples.jsonl` as user and assistant turns, the user's rendered through the role's own `user.md`."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            example = _read_example(line, where)
            _require_slots(example.slots, role, where)
            yield Message("user", _fill(user, example.slots, where))
            yield Message("assistant", example.reply)


def _read_example(line: str, where: str) -> _Example:
    try:
        return _Example.model_validate_json(line)
    except ValidationError as error:
        problem = first_problem(error, "line")
        raise PromptError(f'{where}: bad example ({problem}); a line reads {{"slots": {{…}}, "reply": "…"}}') from error


def _fill(text: str, slots: Mapping[str, str], where: str) -> str:
    """Render a template. Slot values are never read as templates."""
    if "{" not in text:
        return text
    try:
        return _compile(text).render(slots)
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise PromptError(f"{where}: template cannot be filled: {error}") from error


@lru_cache(maxsize=256)
def _compile(text: str) -> Template:
    return _jinja().from_string(text)


@lru_cache(maxsize=1)
def _jinja() -> SandboxedEnvironment:
    env = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    env.globals.clear()  # so that each name is a slot
    del env.filters["random"]  # a prompt that differs each time it is filled is never found in the store again
    return env


def _read_text(path: Path) -> str:
    """Read UTF-8 text, with Unix line ends and without a byte order mark."""
    is_ours = any(path.is_relative_to(sets) for sets in (_PACKAGED_SETS, PROJECT_SETS))
    try:
        data = path.read_bytes() if is_ours else read_regular_file(path, _MOST_BYTES)
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _join(names: Mapping[str, str] | set[str] | frozenset[str]) -> str:
    return ", ".join(sorted(names))
