"""Draws kept on disk: a SQLite file with one row for every finished chunk, each under a hash of its own.

A row holds consecutive draws of one width: an aligned power of two of blocks reduced to their accumulators, or
draws of an unfinished block one by one. Its hash covers what the store is of, the draws' numbers and the bytes, so
a row that is not what was written, where it was written, is drawn again. A row of its own lists the looks that
verdicts were given at, since every further look costs error probability.
"""

from __future__ import annotations

import json
import sqlite3
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from varflow.errors import VarflowError
from varflow.simulate.statistics import Statistics
from varflow.verify_signals import unbroken

FORMAT = 1
APPLICATION = 0x7661_7266
"""The application id in the file's header: "varf"."""
EVERY = 1.0
"""Seconds between two writes."""
WAIT = 5.0
"""Seconds to wait for another process that writes."""
SCHEMA = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, text TEXT NOT NULL, hash BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE chunks (place INTEGER, first INTEGER, draws INTEGER, data BLOB NOT NULL, hash BLOB NOT NULL, "
    "PRIMARY KEY (place, first, draws)) WITHOUT ROWID",
)


class StoreError(VarflowError):
    """A store that cannot be used: damaged, of something else, or no store at all."""


class Piece(NamedTuple):
    """Consecutive draws of one width as `Statistics.pieces` gives them."""

    first: int
    draws: int
    data: bytes


class Store:
    """The draws of one verification on disk; see `opened`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, identity: Mapping[str, Any]) -> None:
        self.path, self.connection = path, connection
        self.identity = dict(identity)
        self.key = _digest(b"identity", _text(self.identity).encode())
        self.known: dict[int, dict[int, list[Piece]]] = {}
        self.looks: list[list[int]] = []
        self.damaged = 0
        self._starts: dict[int, list[int]] = {}
        self._unsaved: dict[int, Statistics] = {}
        self._saved = time.monotonic()

    # -- what there is -------------------------------------------------------------------------------

    def read(self) -> None:
        """Take in what holds; rows whose hash does not hold count as ``damaged``."""
        self._compare(_json(self._about("identity"), self.path))
        self.looks = _json(self._about("looks"), self.path)
        for place, first, draws, data, found in self._rows():
            if not _is_row(place, first, draws, data, found) or found != self._hash(place, first, draws, data):
                self.damaged += 1
                continue
            self.known.setdefault(place, {}).setdefault(first, []).append(Piece(first, draws, data))
        self._starts = {place: sorted(pieces) for place, pieces in self.known.items()}

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        yield from self.connection.execute("SELECT place, first, draws, data, hash FROM chunks")

    def _about(self, name: str) -> str:
        row = self.connection.execute("SELECT text, hash FROM about WHERE name = ?", (name,)).fetchone()
        if row is None or not isinstance(row[0], str) or row[1] != _digest(name.encode(), row[0].encode()):
            raise damaged(self.path, f"the row {name!r} is not what was written")
        return str(row[0])

    def _compare(self, theirs: Mapping[str, Any]) -> None:
        """Refuse a store of something else, naming the first difference."""
        for field, mine in self.identity.items():
            other = theirs.get(field)
            if other != mine:
                raise StoreError(f"the store {self.path} is of another verification",
                                 why=_difference(field, other, mine),
                                 instead="the same network and settings, or another path")

    def find(self, place: int, first: int, stop: int) -> Piece | None:
        """The longest kept piece that starts at draw ``first`` and ends by ``stop``."""
        fitting = [p for p in self.known.get(place, {}).get(first, ()) if p.first + p.draws <= stop]
        return max(fitting, key=lambda p: p.draws, default=None)

    def gap(self, place: int, first: int, stop: int) -> int:
        """Draws from number ``first`` to the next kept piece, or to ``stop``."""
        starts = self._starts.get(place, [])
        k = bisect_right(starts, first)
        return min(starts[k], stop) - first if k < len(starts) else stop - first

    # -- writing -------------------------------------------------------------------------------------

    def keep(self, place: int, drawn: Statistics) -> None:
        """Take in draws just made, and write them if the last write is a second ago."""
        waiting = self._unsaved.setdefault(place, Statistics(drawn.columns))
        waiting.merge(drawn)
        if time.monotonic() > self._saved + EVERY:
            self.save()

    def save(self) -> None:
        """Write what is not written yet, in one transaction."""
        rows = [(place, *piece) for place, waiting in self._unsaved.items() for piece in waiting.pieces()]
        if rows:
            statement = "INSERT OR REPLACE INTO chunks VALUES (?, ?, ?, ?, ?)"
            with _translated(self.path), self.connection:
                self.connection.executemany(statement, [(*row, self._hash(*row)) for row in rows])
        self._unsaved = {}
        self._saved = time.monotonic()

    def look(self, draws: Sequence[int]) -> int:
        """The number of the look at these draws of every width: the one it had, or the next."""
        here = list(draws)
        if here not in self.looks:
            with _translated(self.path), self.connection:
                self.connection.execute("BEGIN IMMEDIATE")
                self.looks = _json(self._about("looks"), self.path)
                if here not in self.looks:
                    self.looks.append(here)
                    self._write("looks", self.looks)
        return self.looks.index(here) + 1

    def create(self) -> None:
        """Write the tables and what the store is of."""
        with self.connection:
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.execute(f"PRAGMA application_id = {APPLICATION}")
            for statement in SCHEMA:
                self.connection.execute(statement)
            self._write("identity", self.identity)
            self._write("looks", [])

    def _write(self, name: str, value: object) -> None:
        text = _text(value)
        row = (name, text, _digest(name.encode(), text.encode()))
        self.connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?, ?)", row)

    def _hash(self, place: int, first: int, draws: int, data: bytes) -> bytes:
        return _digest(self.key, f"{place} {first} {draws}".encode(), data)


@contextmanager
def opened(path: str | Path, identity: Mapping[str, Any], resume: bool) -> Iterator[Store]:
    """The store at a path, made where there is none; closed with everything drawn until then written.

    Raises StoreError where a store exists and ``resume`` is not asked for, or it is of something else, or damaged,
    or the file is no store.
    """
    target = Path(path)
    exists = target.is_file() and target.stat().st_size > 0
    if exists and not resume:
        raise StoreError(f"there is already a file {target}",
                         instead="resume (--resume) to go on with it, or another path")
    if exists and target.read_bytes()[:15] != b"SQLite format 3":
        raise StoreError(f"{target} is not a store of varflow", instead="another path")
    with _translated(target):
        connection = sqlite3.connect(target, timeout=WAIT)
    try:
        with _translated(target):
            store = _prepared(target, connection, identity)
        try:
            yield store
        finally:
            with unbroken():
                store.save()
    finally:
        connection.close()


def _prepared(path: Path, connection: sqlite3.Connection, identity: Mapping[str, Any]) -> Store:
    """The store of an open file: read, or made where the file has no tables."""
    store = Store(path, connection, identity)
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    (number,) = connection.execute("PRAGMA application_id").fetchone()
    if tables and (number != APPLICATION or not {"about", "chunks"} <= tables):
        raise StoreError(f"{path} is not a store of varflow, or damaged", instead="another path")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    if tables:
        store.read()
    else:
        store.create()
    return store


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Errors of SQLite as ours."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        text = str(error)
        if "locked" in text or "already exists" in text:
            raise StoreError(f"another process is writing to {path}", instead="wait for it, or another path") from None
        if any(word in text for word in ("unable to open", "readonly", "full", "disk I/O")):
            raise StoreError(f"{path} cannot be written", why=text, instead="another path") from None
        raise damaged(path, text) from None


def damaged(path: Path, why: str) -> StoreError:
    """The error of a store that SQLite, or a hash, says is broken."""
    return StoreError(f"the store {path} is damaged", why=why, instead="another path, or delete the file to start anew")


def _is_row(*row: Any) -> bool:
    return all(isinstance(x, int) for x in row[:3]) and all(isinstance(x, bytes) for x in row[3:])


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise damaged(path, "a text in it is no JSON") from None


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _digest(*parts: bytes) -> bytes:
    found = blake2b(digest_size=32)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def _difference(field: str, theirs: Any, mine: Any) -> str:
    """What differs, in words."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        key = next(k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k))
        return _difference(f"{field}, {key}", theirs.get(key), mine.get(key))
    if field.endswith("program"):
        return f"{field}: layers, weights or names are not the same"
    shown = [json.dumps(x) if len(json.dumps(x)) < 60 else "" for x in (theirs, mine)]
    return f"{field}: {shown[0]} there, {shown[1]} here" if all(shown) else f"{field}: not the same"
