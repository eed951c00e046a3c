"""YAML 1.2 text to plain values, each with its place.

Only what a graph file needs is read: mappings with text keys, sequences, and the scalars of the YAML 1.2 core
schema, numbers exactly. Aliases, anchors, tags, directives, repeated keys and a second document are reported,
never constructed; so are files over the limits of size, depth and count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from varflow.errors import InputError, VarflowError

MAX_BYTES, MAX_LEVELS, MAX_VALUES, MAX_DIGITS, MAX_EXPONENT = 2**20, 64, 50_000, 50, 400
Path = tuple[str | int, ...]


class Poison:
    """What stands where a value could not be read; its error is already reported."""

    def __repr__(self) -> str:
        return "(unreadable)"


POISON = Poison()


@dataclass
class Tree:
    """A file as plain values: dict, list, str, int, Decimal, bool, None; ``places`` of values and of keys
    (line and column from 1) by path, and the ``errors`` found while reading."""

    file: str
    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    errors: list[VarflowError] = field(default_factory=list)
    damaged: set[Path] = field(default_factory=set)
    """Mappings of which a key could not be read."""

    def where(self, path: Path, key: bool = False) -> str:
        """``file:line:col`` of the value (its key) at a path, or of the nearest one around it."""
        while path not in self.places:
            path = path[:-1]
        line, column = self.keys.get(path, self.places[path]) if key else self.places[path]
        return f"{self.file}:{line}:{column}"


def read_tree(text: str, file: str) -> Tree:
    """The values of a YAML text. Raises InputError for a text whose structure cannot be read at all."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if long := _LONG_TAG.search(text):  # ruamel.yaml takes quadratic time over one
        raise InputError("a word of more than 1000 characters begins with !", _at(text, long.start(), file),
                         "such a word is a tag, and graph files have none", "a shorter word, or none")
    composer = _Composer(Tree(file))
    try:
        composer.read(YAML(typ="safe", pure=True).parse(text))
    except YAMLError as error:
        raise _syntax_error(error, file, text) from None
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError, AssertionError) as error:
        line, column = max(composer.tree.places.values(), default=(1, 1))
        where = f"{file}:{line}:{column}"
        why = f"{type(error).__name__}: {error}"[:120]
        raise InputError("this is not YAML: what follows cannot be read", where, why, "a YAML 1.2 document") from None
    return composer.tree


_LONG_TAG = re.compile(r"!\S{1000}")


def _at(text: str, index: int, file: str) -> str:
    line, column = text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
    return f"{file}:{line}:{column}"


def _syntax_error(error: Any, file: str, text: str) -> InputError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        at = next((k for k, c in enumerate(text) if not (c.isprintable() or c in "\n\r\t\x85\u2028\u2029")), 0)
        return InputError(f"the character {text[at : at + 1]!r} is one that YAML does not allow",
                          _at(text, at, file), "control characters are not text",
                          "printable characters, or an escape in double quotes")
    where = f"{file}:{mark.line + 1}:{mark.column + 1}"
    problem = str(getattr(error, "problem", "") or "it cannot be read")
    hint = "spaces for indentation, not tabs" if "\\t" in problem else (
        "closed brackets and quotes, and quotes around a text with one of : # , [ ] { } & * ! | > % @ in it")
    why = str(getattr(error, "context", "") or "found while reading")
    return InputError(f"this is not YAML: {problem[:120]}", where, why, hint)


_NULL, _TRUE, _FALSE = ("", "~", "null", "Null", "NULL"), ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o([0-7]+)|0x([0-9a-fA-F]+)")
_REAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE]([-+]?[0-9]+))?")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


def is_text(word: str) -> bool:
    """Whether YAML 1.2 reads an unquoted word as text."""
    known = word in _NULL + _TRUE + _FALSE
    return not known and not any(p.fullmatch(word) for p in (_INTEGER, _BASED, _REAL, _INFINITE))


class _Composer:
    def __init__(self, tree: Tree) -> None:
        self.tree, self.count = tree, 0
        self.events: Iterator[Any] = iter(())

    def read(self, events: Iterator[Any]) -> None:
        self.events = events
        self.kind(next(events))
        start = next(events)
        if self.kind(start) == "StreamEnd":
            raise InputError("the file is empty", f"{self.tree.file}:1:1", "a network has inputs and nodes",
                             "name: ..., inputs: ..., nodes: ...")
        self.directives(start)
        self.tree.value = self.compose(next(events), ())
        self.kind(next(events))
        rest = next(events)
        if self.kind(rest) != "StreamEnd":
            self.report(rest, "a second document begins here", "a graph file is one document",
                        "one file per network, without ---")

    @staticmethod
    def kind(event: Any) -> str:
        return type(event).__name__.removesuffix("Event")

    def report(self, event: Any, what: str, why: str = "", instead: str = "") -> None:
        mark = event.start_mark
        where = f"{self.tree.file}:{mark.line + 1}:{mark.column + 1}"
        self.tree.errors.append(InputError(what, where, why, instead))

    def directives(self, start: Any) -> None:
        if start.tags or (start.version and tuple(start.version) != (1, 2)):
            self.report(start, "a directive stands before the document", "graph files are YAML 1.2 without tags",
                        "no line that begins with %")

    def compose(self, event: Any, path: Path) -> Any:
        self.limits(event, path)
        mark = event.start_mark
        self.tree.places[path] = (mark.line + 1, mark.column + 1)
        kind = self.kind(event)
        if kind == "Alias":
            self.report(event, f"*{event.anchor} is an alias", "graph files have none", "the value itself, written out")
            return POISON
        self.decoration(event)
        if kind == "Scalar":
            return self.scalar(event)
        return self.sequence(path) if kind == "SequenceStart" else self.mapping(path)

    def limits(self, event: Any, path: Path) -> None:
        self.count += 1
        where = f"{self.tree.file}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"
        if len(path) >= MAX_LEVELS:
            raise InputError(f"nested deeper than {MAX_LEVELS} levels", where, "this is the limit of a graph file",
                             "flatter blocks")
        if self.count > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES} values in one file", where, "this is the limit of a graph file",
                             "blocks with repeat, or a network built in Python")

    def decoration(self, event: Any) -> None:
        if event.anchor:
            self.report(event, f"&{event.anchor} is an anchor", "graph files have no aliases", "the value without it")
        if getattr(event, "tag", None):
            self.report(event, f"{str(event.tag)[:60]!r} is a tag", "nothing in a graph file is constructed by type",
                        "the value without it")

    def sequence(self, path: Path) -> list[Any]:
        values: list[Any] = []
        while self.kind(event := next(self.events)) != "SequenceEnd":
            values.append(self.compose(event, (*path, len(values))))
        return values

    def mapping(self, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while self.kind(event := next(self.events)) != "MappingEnd":
            name = self.key(event, path)
            if name is None or name in values:
                self.tree.damaged.add(path)
                self.compose(next(self.events), (*path, f"\0{self.count}"))
                continue
            self.tree.keys[*path, name] = (event.start_mark.line + 1, event.start_mark.column + 1)
            values[name] = self.compose(next(self.events), (*path, name))
        return values

    def key(self, event: Any, path: Path) -> str | None:
        """The text of a key; None, and an error, for one that cannot be used."""
        value = self.compose(event, (*path, f"\0{self.count}"))
        if isinstance(value, str) and not (value == "<<" and not event.style):
            if (*path, value) in self.tree.keys:
                self.report(event, f"the key {shown(value)} stands twice", "the second would replace the first",
                            "each key once")
            return value
        if value is not POISON:
            self.report(event, f"{shown(value)} cannot be a key", "a key is a text", "a name, in quotes if need be")
        return None

    def scalar(self, event: Any) -> Any:
        text: str = event.value
        if any(0xD800 <= ord(c) < 0xE000 for c in text):
            self.report(event, f"{shown(text)} has half a character in it", "a surrogate alone is not text",
                        "the whole character, or \\U and its eight digits")
            return POISON
        if event.style or is_text(text):
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INFINITE.fullmatch(text):
            self.report(event, f"{text} is not a finite number", "a law has finite moments",
                        "a finite number or an expression")
            return POISON
        return self.number(event, text)

    def number(self, event: Any, text: str) -> Any:
        based, real = _BASED.fullmatch(text), _REAL.fullmatch(text)
        digits = sum(c.isalnum() for c in text)
        power = real.group(1) if real else None
        if digits > MAX_DIGITS or (power and abs(int(power)) > MAX_EXPONENT):
            self.report(event, f"the number {shown(text)} is too long",
                        f"at most {MAX_DIGITS} digits and a decimal exponent up to {MAX_EXPONENT}", "a shorter number")
            return POISON
        if based:
            return int(text, 0)
        return int(text) if _INTEGER.fullmatch(text) else Decimal(text)


def shown(value: object, most: int = 60) -> str:
    """A value for a message: short, on one line, without control characters."""
    if isinstance(value, Decimal):
        return str(value)
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
