"""Where graph files are found, and how they are read from and written to disk."""

from __future__ import annotations

from pathlib import Path

from varflow.errors import InputError
from varflow.fields import closest
from varflow.load.yaml import MAX_BYTES, shown

SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).resolve().parent.parent


def graph_folder() -> Path:
    """The folder of the graphs that come with varflow: in the package, or beside it in a checkout."""
    inside = _PACKAGE / "graphs"
    return inside if inside.is_dir() else _PACKAGE.parent / "graphs"


def graph_names() -> list[str]:
    """Names that ``load`` takes without a path."""
    return sorted(p.stem for p in graph_folder().glob("*.yaml"))


def find(name: str | Path) -> Path:
    """The file of a path, or of the bare name of a shipped graph. Raises InputError."""
    try:
        path = Path(name)
        if path.is_file():
            return path
        bare = path.name == str(name) and path.suffix in ("", *SUFFIXES)
        shipped = graph_folder() / f"{path.stem if path.suffix in SUFFIXES else name}.yaml"
        if bare and shipped.is_file():
            return shipped
        folder = path.is_dir()
        found = path.exists()
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"{shown(name)} is not a path", why=str(error)[:200]) from None
    if folder or found:
        raise InputError(f"{shown(str(name))} is not a file", instead="a file that ends in .yaml")
    hint = closest(path.stem, graph_names()) if bare else "a path to a file that ends in .yaml"
    raise InputError(f"there is no file {shown(str(name))}", instead=hint)


def read_text(path: Path) -> str:
    """The text of a graph file. Raises InputError for one that is too large or not UTF-8."""
    where = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError("the file cannot be read", where, error.strerror or "") from None
    return decode(data, where)


def decode(data: bytes, where: str) -> str:
    """Bytes of a graph file as text. Raises InputError."""
    if len(data) > MAX_BYTES:
        raise InputError("the file is larger than 1 MiB", where, "a graph file is written by hand",
                         "blocks with repeat, or a network built in Python")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise InputError("the file is not text in UTF-8", f"{where}:{line}:{column}", error.reason,
                         "a file saved as UTF-8") from None
