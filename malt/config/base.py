"""Declared: base class of every part of a config, with its validation and its schema for Prefect's form."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, ValidationInfo, field_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


def _drop_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema without its null choice if null is the default: an empty form field is null anyway."""
    if field.get("default", ...) is not None:
        return field
    (kind,) = (kind for kind in field["anyOf"] if kind != {"type": "null"})
    return {**kind, **{name: value for name, value in field.items() if name not in ("anyOf", "default")}}


def wrap_single(value: object) -> object:
    """Wrap a text in a list, so that a single value can be written without brackets."""
    return [value] if isinstance(value, str) else value


class Declared(BaseModel):
    """Frozen and strict about names: an unknown key is an error, a field's docstring is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    first: ClassVar[tuple[str, ...]] = ()
    """Fields that a form shows first; the others follow in the order of declaration."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the fields as Prefect's form shows them best."""
        schema = handler(core)
        fields = handler.resolve_ref_schema(schema)["properties"]
        for position, name in enumerate(dict.fromkeys((*cls.first, *cls.model_fields))):
            fields[name] = {**_drop_null(fields[name]), "title": name, "position": position}
        return schema

    @field_validator("*", mode="before")
    @classmethod
    def _switches_alone_are_true_or_false(cls, value: object, info: ValidationInfo) -> object:
        """Refuse true and false elsewhere: pydantic would read them as the numbers 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError(f"is {str(value).lower()}, and takes neither true nor false")
        return value


class Recorded(BaseModel):
    """Frozen, and ignores unknown keys, so that files of later releases can be read."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


def first_problem(error: ValidationError, whole: str, *, quotes: bool = False) -> str:
    """Return the first problem and its field, else `whole`; `quotes` adds the value, cut to 60 characters."""
    first = error.errors(include_url=False)[0]
    value = f", got {first['input']!r:.60}" if quotes and first["type"] != "missing" else ""
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}{value}"
