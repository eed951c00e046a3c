"""Graph files: networks from YAML and to YAML, with an exact round trip."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import sympy as sp

from varflow.errors import ErrorList, InputError, named_values, require_path
from varflow.fields import closest, exact
from varflow.load.build import build, complete
from varflow.load.shipped import SUFFIXES, decode, find, graph_names, read_text
from varflow.load.write import network_text
from varflow.load.yaml import Tree, read_tree
from varflow.network import Network, require_network

__all__ = ["from_text", "graph_names", "load", "save", "to_text"]


def load(path: str | os.PathLike[str], values: Mapping[str, float] | None = None) -> Network:
    """The network of a graph file, or of a graph that comes with varflow by its bare name ("mlp_relu").

    ``values`` are numbers for symbols that the file declares, put in while it is read: for layers that need numbers, as
    an adaptive pool whose windows depend on the size of the image (others can be bound later, see Network.bind).

    Raises ErrorList with every error of the file: what, file:line:column, why, what to write instead.
    """
    require_path(path, "what is to be loaded", 'a path, or the name of a shipped graph: vf.load("mlp_relu")')
    found = find(Path(path) if isinstance(path, os.PathLike) else path)
    if found.suffix not in SUFFIXES:
        raise InputError(f"the ending {found.suffix!r} is not one of a graph file", str(found),
                         instead="a YAML file that ends in .yaml")
    return from_text(read_text(found), str(path) if Path(path) == found else str(found), values)


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network as a graph file; loading it gives an equal network.

    Raises InputError for a network that a graph file cannot say, or a path that cannot be written.
    """
    require_network(network, "what is to be saved")
    require_path(path, "the path", 'a path that ends in .yaml: vf.save(network, "network.yaml")')
    text = to_text(network)
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise InputError(f"the ending {target.suffix!r} is not one of a graph file", str(target),
                         instead="a path that ends in .yaml")
    try:
        target.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError("the file cannot be written", str(target), error.strerror or "") from None


def from_text(text: str | bytes, file: str = "<text>", values: Mapping[str, float] | None = None) -> Network:
    """The network that the text of a graph file describes; ``file`` names it in errors, ``values`` are as for
    :func:`load`. Raises ErrorList, and InputError for values that are not numbers of declared symbols."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        tree = read_tree(decode(data, file), file)
        return build(tree, _numbers(named_values(values), tree))
    except ErrorList:
        raise
    except InputError as error:
        raise ErrorList([complete(error)]) from None


def _numbers(values: Mapping[str, float], tree: Tree) -> dict[str, sp.Expr]:
    declared = tree.value.get("symbols") if isinstance(tree.value, dict) else None
    names = list(declared) if isinstance(declared, dict) else []
    numbers = {}
    for name, value in values.items():
        number = exact(value)
        if name not in names:
            raise InputError(f"{name!r} is not a symbol that the file declares", tree.file,
                             instead=closest(name, names) if names else "no values")
        if number is None or not number.is_number:
            raise InputError(f"value {value!r} of {name!r} is not a number", tree.file, instead="a finite number")
        numbers[name] = number
    return numbers


def to_text(network: Network) -> str:
    """A network as the text of a graph file. Raises InputError for one that a graph file cannot say."""
    network.check()
    return network_text(network)
