"""Question, and reading question files: columns, ids, and how each benchmark writes its reference answer.

Every row is read by itself, so adding rows never changes how the others are read, named or ordered.
"""

import json
import logging
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import JsonValue

from malt.canonical_json import digest
from malt.config.questions import QuestionSource
from malt.errors import QuestionError
from malt.questions.readers import Row, excerpt, join_names, read_rows, strip_secrets

_log = logging.getLogger("malt.questions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question and its reference answer. The reference is for graders alone; no trained role ever sees it."""

    question_id: str
    question: str
    """The full text asked, with its lettered choices where there are any."""
    ground_truth: str
    reference: str = ""
    """The whole field that `ground_truth` was read from, such as a worked solution; empty if equal, or with choices."""
    choices: tuple[str, ...] = ()
    """Texts of the choices, in the order of their letters A, B, C, …"""
    metadata: dict[str, JsonValue] = field(default_factory=dict)
    """The row's other columns; empty cells and binary ones are left out."""

    @property
    def stem(self) -> str:
        """The question without its choices."""
        return self.question.removesuffix(_lettered("", self.choices)) if self.choices else self.question

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further reference answers; any of them counts as right."""
        listed = self.metadata.get("aliases")
        return tuple(each for each in listed if isinstance(each, str)) if isinstance(listed, list) else ()


def read_questions(source: QuestionSource, key: str = "questions") -> list[Question]:
    """Read and check the whole file, then shuffle and cut it as `source` says.

    The shuffle orders by a digest of seed and id, so rows added later do not reorder the others.
    `key` is the config table that names the file. Raises `QuestionError` naming file and line (for .json and .parquet
    the row, counted from 1).
    """
    _check_format(source, key)
    questions = _read_distinct(source, f"{key}.source")
    if source.shuffle_seed is not None:
        questions.sort(key=lambda question: digest([source.shuffle_seed, question.question_id]))
    return questions[: source.limit]


def _check_format(source: QuestionSource, key: str) -> None:
    if source.choices and source.format not in ("auto", "csqa"):
        problem = f"{key}.choices = {source.choices!r}: format {source.format!r} reads no choices"
        raise QuestionError(f"{problem}; set {key}.format to 'csqa' or 'auto'")


def content_id(question: str, ground_truth: str) -> str:
    """Return an id for a question that has none: a digest of its content, the same in any file and position."""
    return f"q{digest([question, ground_truth])[:12]}"


def _read_distinct(source: QuestionSource, key: str) -> list[Question]:
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    repeats: list[str] = []
    for row in read_rows(source.source, key):
        question = read_question(row, source)
        first = questions.setdefault(question.question_id, question)
        if first is question:
            places[question.question_id] = row.place
        elif (first.question, first.ground_truth) == (question.question, question.ground_truth):
            repeats.append(f"{row.place} repeats {places[question.question_id]}")
        else:
            taken = f"id {question.question_id!r} is taken by {places[question.question_id]}"
            raise QuestionError(f"{row.place}: {taken}; give every row its own id")
    if not questions:
        raise QuestionError(f"{strip_secrets(source.source)}: no questions in it; give a file with one question a row")
    if repeats:
        rows = "1 row is" if len(repeats) == 1 else f"{len(repeats)} rows are"
        _log.warning("%s dropped, since an earlier row has the same question and answer: %s", rows, repeats[0])
    return list(questions.values())


_REFERENCE_COLUMNS = {
    "gsm8k": ("ground_truth", "answer"),
    "math": ("ground_truth", "solution", "answer"),
    "csqa": ("ground_truth", "answerKey", "answer"),
    "plain": ("ground_truth", "answer", "solution", "answerKey"),
    "auto": ("ground_truth", "answer", "solution", "answerKey"),
}
_LONGEST_ID = 500
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def read_question(row: Row, source: QuestionSource) -> Question:
    """Read one row as `source` says. Raises `QuestionError` naming the row's place."""
    try:
        return _question(_flatten(row.values), source)
    except QuestionError as error:
        raise QuestionError(f"{row.place}: {error}") from error


def _question(values: Mapping[str, JsonValue], source: QuestionSource) -> Question:
    choices_column = _choices_column(values, source)
    asked = _column(values, "question", source.question, ("question", "problem"))
    references = _REFERENCE_COLUMNS["csqa" if choices_column else source.format]
    answered = _column(values, "ground_truth", source.ground_truth, references)
    question, reference = _filled(values, asked, "question"), _filled(values, answered, "reference answer")
    choices: tuple[str, ...] = ()
    if choices_column:
        labels, choices = _read_choices(values[choices_column])
        question = _lettered(question, choices)
        reference = _letter(values[answered], labels, choices)
        full_reference = ""
    else:
        full_reference, reference = reference, read_reference(reference, source.format)
    id_column = _id_column(values, source)
    used = {asked, answered, choices_column, id_column}
    return Question(
        question_id=_given_id(values, id_column) if id_column else content_id(question, reference),
        question=question,
        ground_truth=reference,
        reference="" if full_reference == reference else full_reference,
        choices=choices,
        metadata={name: value for name, value in values.items() if name not in used and value is not None},
    )


def _flatten(values: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Flatten the nested columns that some benchmarks publish.

    CommonsenseQA has the choices in the question: `{"stem": …, "choices": […]}`. TriviaQA has an answer with aliases,
    `{"value": …, "aliases": […]}`, Natural Questions a list of answers; the first is the reference.
    """
    flat = dict(values)
    if isinstance(asked := values.get("question"), dict) and "stem" in asked:
        flat |= {**asked, "question": asked["stem"]}
        del flat["stem"]
    for name in ("ground_truth", "answer"):
        if isinstance(answer := flat.get(name), dict) and "value" in answer:
            flat |= {name: answer["value"], "aliases": answer.get("aliases")}
        elif isinstance(answer, list) and answer and "choices" not in flat:
            flat |= {name: answer[0], "aliases": answer[1:]}
    return flat


def _column(values: Mapping[str, JsonValue], key: str, declared: str | None, defaults: Sequence[str]) -> str:
    """Return the declared column, else the first default column filled in this row, else the first one present."""
    candidates = [name for name in ([declared] if declared else defaults) if name in values]
    if not candidates:
        wanted = " or ".join(repr(name) for name in ([declared] if declared else defaults))
        has = join_names(values)
        raise QuestionError(f"no column {wanted}; it has: {has}. Name the right one as {key!r}, beside 'source'")
    return next((name for name in candidates if _is_filled(values[name])), candidates[0])


def _choices_column(values: Mapping[str, JsonValue], source: QuestionSource) -> str | None:
    """Return the column of the choices, or None if the row is not multiple choice."""
    if source.format == "csqa":
        return _column(values, "choices", source.choices, ("choices",))
    if source.format != "auto":
        return None
    name = _column(values, "choices", source.choices, ()) if source.choices else "choices"
    return name if _is_filled(values.get(name)) else None


def _id_column(values: Mapping[str, JsonValue], source: QuestionSource) -> str | None:
    if source.id:
        return _column(values, "id", source.id, ())
    return "id" if _is_filled(values.get("id")) else None


def _is_filled(value: JsonValue) -> bool:
    return value is not None and value != "" and value != []


def _filled(values: Mapping[str, JsonValue], column: str, what: str) -> str:
    text = read_cell(values[column], column)
    if not text:
        raise QuestionError(f"empty {what} in column {column!r}; fill it or remove the row")
    return text


def _given_id(values: Mapping[str, JsonValue], column: str) -> str:
    given = _filled(values, column, "id")
    if _CONTROL.search(given):
        raise QuestionError(f"id {given!r} holds a control character; ids must be printable on one line")
    if len(given) > _LONGEST_ID:
        raise QuestionError(
            f"id {excerpt(given)} is longer than {_LONGEST_ID} characters; databases cannot hold longer ones"
        )
    return given


def read_cell(value: JsonValue, column: str) -> str:
    """Read a cell as text. Whole floats lose their `.0`: a column of whole numbers with a gap is stored as floats."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    kind = "a list" if isinstance(value, list) else "an object"
    raise QuestionError(f"column {column!r} holds {kind}, expected text or a number")


_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def read_reference(text: str, written: str) -> str:
    """Return the final answer that a reference holds, written as `QuestionSource.format` says.

    `auto` takes a last line that holds `####` as GSM8K, any \\boxed{} or \\fbox{} as MATH, and else the whole text.
    """
    if written == "gsm8k" or (written == "auto" and _ends_in_hashes(text)):
        return _after_hashes(text)
    if written == "math" or (written == "auto" and _BOX.search(text)):
        return find_last_boxed(text)
    return text


def _ends_in_hashes(text: str) -> bool:
    _, hashes, answer = text.strip().rpartition("####")
    return bool(hashes and answer) and "\n" not in answer


def _after_hashes(text: str) -> str:
    _, hashes, answer = text.rpartition("####")
    if hashes and answer.strip():
        return answer.strip()
    raise QuestionError(f"no answer after '####' in {excerpt(text)}; set questions.format = 'plain' or fix the row")


def find_last_boxed(text: str) -> str:
    r"""Return the content of the last `\boxed{…}` or `\fbox{…}`, or the word after a `\boxed` without braces."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        raise QuestionError(f"no \\boxed{{…}} in {excerpt(text)}; set questions.format = 'plain' or fix the row")
    rest = text[boxes[-1].end() :]
    content = _braced(rest) if rest.startswith("{") else re.split(r"[\s$]", rest, maxsplit=1)[0].rstrip(".,;")
    if not content or not content.strip():
        raise QuestionError(f"empty or unclosed \\boxed in {excerpt(text[boxes[-1].start() :])}; fix the row")
    return content.strip()


def _braced(text: str) -> str | None:
    r"""Return the text between the first brace and its closing one; an escaped `\{` is no brace."""
    depth = 0
    for brace in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[1 : brace.start()]
    return None


class Choices(NamedTuple):
    """The choices of one question; `labels` is None where the file gives texts alone."""

    labels: tuple[str, ...] | None
    texts: tuple[str, ...]


def _read_choices(value: JsonValue) -> Choices:
    """Read `{"label": […], "text": […]}`, a list of `{"label", "text"}` or a list of texts; in CSV as JSON text."""
    labels: Sequence[JsonValue] | None = None
    match _parsed(value):
        case {"label": list(labels), "text": list(texts)} if len(labels) == len(texts):
            pass
        case [{"label": _, "text": _}, *_] as items:
            parts = [item if isinstance(item, dict) else {} for item in items]
            labels, texts = ([part.get(name) for part in parts] for name in ("label", "text"))
        case list(texts):
            labels = None
        case _:
            raise QuestionError(
                f'choices {excerpt(value)} cannot be read; write {{"label": […], "text": […]}} or a list of texts, '
                "or set questions.format if this is not multiple choice"
            )
    names = None if labels is None else tuple(read_cell(label, "choices") for label in labels)
    return Choices(names, _texts(texts))


def _parsed(value: JsonValue) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _texts(items: Sequence[JsonValue]) -> tuple[str, ...]:
    texts = tuple(item.strip() for item in items if isinstance(item, str))
    if len(texts) < len(items) or not all(texts):
        raise QuestionError(f"choices {excerpt(items)} must all be texts that are not empty")
    if not 2 <= len(texts) <= len(string.ascii_uppercase):
        raise QuestionError(f"{len(texts)} choices; there must be 2 to {len(string.ascii_uppercase)}")
    return texts


def _lettered(stem: str, choices: Sequence[str]) -> str:
    lines = (f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, choices, strict=False))
    return "\n".join((stem, *lines))


def _letter(reference: JsonValue, labels: Sequence[str] | None, texts: Sequence[str]) -> str:
    """Return the letter of the choice that `reference` names; raise if it could mean several choices or none.

    Choices with labels are matched by label, then by text; choices without labels by letter, text, or position counted
    from 0 as in MMLU. A reference stored as a number is only a position.
    """
    key = read_cell(reference, "ground_truth")
    by_text = _matches(key, texts)
    if labels is not None:
        found = _matches(key.casefold(), [label.casefold() for label in labels]) or by_text
    elif isinstance(reference, str):
        letters = string.ascii_uppercase[: len(texts)]
        found = by_text | _matches(key.upper(), letters) | _position(key, len(texts))
    else:
        found = _position(key, len(texts))
    if len(found) == 1:
        return string.ascii_uppercase[found.pop()]
    problem = "can be read as several of" if found else "is none of"
    wanted = f"one of {excerpt(labels)}" if labels else "a letter A, B, …"
    raise QuestionError(f"reference answer {key!r} {problem} the choices {excerpt(texts)}; write {wanted}")


def _matches(key: str, candidates: Sequence[str]) -> set[int]:
    return {index for index, candidate in enumerate(candidates) if candidate == key}


def _position(key: str, count: int) -> set[int]:
    return {int(key)} if re.fullmatch(r"[0-9]{1,2}", key) and int(key) < count else set()
