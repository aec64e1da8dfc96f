"""Every key of a configuration in words, read off the models that `rl.config` composes."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_json

from rl.config import Config


def in_words(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Two lines a key: name, type and default; what it is for. NAME and N stand for a key and a place of one's own."""
    for name, field in model.model_fields.items():
        path, below = prefix + name, _model(field.annotation)
        if below is None:
            yield f"{path}: {_type(field.annotation)}{_default(field)}\n    {_line(field.description)}"
            continue
        yield f"[{path}{below[1]}]{_default(field)}\n    {_line(field.description or below[0].__doc__)}"
        yield from in_words(below[0], f"{path}{below[1]}.")


def _model(annotation: Any) -> tuple[type[BaseModel], str] | None:
    """The model inside `X | None`, `tuple[X, ...]` or `dict[str, X]`, and what stands before its keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    place = {tuple: ".N", dict: ".NAME"}.get(get_origin(annotation), "")
    for argument in get_args(annotation):
        if found := _model(argument):
            return found[0], place + found[1]
    return None


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _type(annotation: Any) -> str:
    arguments, origin = get_args(annotation), get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(json.dumps, arguments))
    if origin in (Union, UnionType):
        return " | ".join(map(_type, arguments))
    if origin is Annotated:
        return _type(arguments[0])
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    if origin is dict:
        return f"{{ NAME = {_type(arguments[1])} }}"
    plain = {NoneType: "none", Ellipsis: "...", Any: "anything"}
    return plain.get(annotation) or annotation.__name__.lower()


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return ", required"
    return "" if isinstance(default, BaseModel) else f" = {'none' if default is None else to_json(default).decode()}"
