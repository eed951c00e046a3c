"""Graph files: networks from YAML and to YAML, with an exact round trip."""

from __future__ import annotations

import os
from pathlib import Path

from varflow.errors import ErrorList, InputError
from varflow.load.build import build, complete
from varflow.load.shipped import SUFFIXES, decode, find, graph_names, read_text
from varflow.load.write import network_text
from varflow.load.yaml import read_tree
from varflow.network import Network

__all__ = ["from_text", "graph_names", "load", "save", "to_text"]


def load(path: str | os.PathLike[str]) -> Network:
    """The network of a graph file, or of a graph that comes with varflow by its bare name ("mlp_relu").

    Raises ErrorList with every error of the file: what, file:line:column, why, what to write instead.
    """
    found = find(Path(path) if isinstance(path, os.PathLike) else path)
    if found.suffix not in SUFFIXES:
        raise InputError(f"the ending {found.suffix!r} is not one of a graph file", str(found),
                         instead="a YAML file that ends in .yaml")
    return from_text(read_text(found), str(path) if Path(path) == found else str(found))


def save(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network as a graph file; loading it gives an equal network.

    Raises InputError for a network that a graph file cannot say, or a path that cannot be written.
    """
    text = to_text(network)
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise InputError(f"the ending {target.suffix!r} is not one of a graph file", str(target),
                         instead="a path that ends in .yaml")
    try:
        target.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError("the file cannot be written", str(target), error.strerror or "") from None


def from_text(text: str | bytes, file: str = "<text>") -> Network:
    """The network that the text of a graph file describes; ``file`` names it in errors. Raises ErrorList."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        return build(read_tree(decode(data, file), file))
    except ErrorList:
        raise
    except InputError as error:
        raise ErrorList([complete(error)]) from None


def to_text(network: Network) -> str:
    """A network as the text of a graph file. Raises InputError for one that a graph file cannot say."""
    network.check()
    return network_text(network)
