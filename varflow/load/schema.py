"""What a graph file may say: the parts of a document, and errors about them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from varflow.errors import InputError, VarflowError
from varflow.fields import closest
from varflow.load.yaml import POISON, Path, Tree, shown

POLICIES = ("forward", "backward", "harmonic", "geometric")


def _expression(value: Any) -> Any:
    if value is POISON or (isinstance(value, str | int | Decimal) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError("expression", "{shown} is not a number or an expression", {"shown": shown(value)})


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) or value is POISON else value


def _several(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _present(value: Any) -> Any:
    return {} if value is None else value


Expression = Annotated[Any, BeforeValidator(_expression)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_names), Field(strict=False)]
Sizes = Annotated[list[Expression], BeforeValidator(_several)]
Parts = Annotated[dict[str, Any], BeforeValidator(_present)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Body(_Part):
    """The parts that a network and a block share."""

    symbols: Parts = {}
    inputs: Parts
    nodes: list[Any] = []
    outputs: Names = ()


class Document(Body):
    """A whole file."""

    name: Name = "network"
    source: str = ""
    preserve: Literal["forward", "backward", "harmonic", "geometric"] = "forward"


class Input(_Part):
    """An input: its shape and the moments of its entries."""

    channels: Expression = None
    positions: Sizes = []
    mean: Expression = 0
    second_moment: Expression = 1
    position_correlation: Expression = 0
    sample_correlation: Expression = 0


class Layer(BaseModel):
    """A node; what is left over are the fields of its layer."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: Name
    op: Name
    inputs: Names = Field((), alias="in")


class Block(Body):
    """A nested network in place of a layer."""

    name: Name
    op: Name
    arguments: Names = Field((), alias="in")
    repeat: Expression = 1
    body_name: Name | None = None
    source: str = ""
    preserve: Literal["forward", "backward", "harmonic", "geometric"] = "forward"


_HINTS: Mapping[tuple[type, str], str] = {
    (Document, "inputs"): "inputs: {x: {channels: n}}",
    (Block, "inputs"): "inputs: {x: {}}: the block's own names for what it reads",
    (Layer, "name"): "- {name: fc1, op: linear, in: x, out_channels: n}",
    (Layer, "op"): "op: linear, or another layer or activation",
    (Layer, ""): "{name: fc1, op: linear, in: x, out_channels: n}",
    (Input, ""): "{channels: n}",
    (Document, ""): "name: ..., inputs: ..., nodes: ...",
    (Block, "name"): "- {name: b, op: block, in: x, inputs: {x: {}}, nodes: [...]}",
}
_WHY_MISSING = {"inputs": "a network is a function of its inputs", "name": "other nodes refer to a node by its name",
                "op": "it says which layer the node is"}
_KINDS = {
    "string_type": ("a text", "a text, in quotes if it looks like a number"),
    "list_type": ("a list", "[...], or lines that begin with -"),
    "tuple_type": ("a name or a list of names", "x, or [x, y]"),
    "dict_type": ("a mapping", "{key: value}"),
    "model_type": ("a mapping", "{key: value}"),
    "model_attributes_type": ("a mapping", "{key: value}"),
}
Model = TypeVar("Model", bound=BaseModel)


def read_part(tree: Tree, kind: type[Model], path: Path, value: Any) -> tuple[Model | None, set[str]]:
    """One part of a document and the keys of it that do not fit, every error reported.

    The part is read without those keys; it is None where it cannot be.
    """
    if not isinstance(value, dict):
        if value is not POISON:
            tree.errors.append(InputError(f"{shown(value)} is not a mapping", tree.where(path),
                                          "its parts have names", _HINTS.get((kind, ""), "{key: value}")))
        return None, set()
    wrong = _wrong_keys(tree, kind, path, value)
    rest = {k: v for k, v in value.items() if k not in wrong}
    if issubclass(kind, Body) and "inputs" not in rest:
        rest["inputs"] = {}
    try:
        return kind.model_validate(rest), wrong
    except ValidationError:
        return None, wrong


def _wrong_keys(tree: Tree, kind: type[BaseModel], path: Path, value: dict[str, Any]) -> set[str]:
    try:
        kind.model_validate(value)
    except ValidationError as failure:
        details = failure.errors(include_url=False, include_context=True)
        tree.errors += [e for d in details if (e := _explained(tree, kind, path, d))]
        return {str(d["loc"][0]) for d in details if d["loc"]}
    return {k for k, v in value.items() if v is POISON}


def _explained(tree: Tree, kind: type[BaseModel], path: Path, detail: ErrorDetails) -> VarflowError | None:
    """A message in the project's own words for one finding of pydantic."""
    if detail["input"] is POISON:
        return None
    at: Path = (*path, *detail["loc"])
    key, value, kind_of = str(at[-1]), shown(detail["input"]), detail["type"]
    if isinstance(at[-1], int):
        key = f"{at[-2]} {key}"
    if kind_of == "missing":
        return InputError(f"{key!r} is missing", tree.where(path), _WHY_MISSING.get(key, "it has no default"),
                          _HINTS.get((kind, key), f"{key}: ..."))
    if kind_of == "extra_forbidden":
        known = _keys(kind)
        return InputError(f"unknown key {shown(key)}", tree.where(at, key=True),
                          f"the keys here are {', '.join(known)}", closest(key, known))
    if kind_of == "literal_error":
        return InputError(f"{key} {value} is not known", tree.where(at), "it names what the initialization preserves",
                          "one of " + ", ".join(POLICIES))
    if kind_of == "expression":
        return InputError(f"{key}: {value} is not a number or an expression", tree.where(at),
                          "a formula is made of numbers and symbols", "a number, or an expression as text")
    if kind_of == "string_too_short":
        return InputError(f"{key} is empty", tree.where(at), "others refer to it by name", "a name")
    if kind_of == "string_too_long":
        return InputError(f"{key} {value} is too long", tree.where(at), "names are printed", "at most 1000 characters")
    wanted, instead = _KINDS.get(kind_of, (detail["msg"], "what the page on graph files describes"))
    return InputError(f"{key}: {value} is not {wanted}", tree.where(at), f"{key} is {wanted}", instead)


def _keys(kind: type[BaseModel]) -> list[str]:
    return [f.alias or n for n, f in kind.model_fields.items()]
