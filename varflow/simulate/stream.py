"""What has to agree for two simulations to have the same bits: the stream of random numbers, the program, and the
arithmetic of this code on this processor."""

from __future__ import annotations

import dataclasses
import platform
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import sympy as sp

from varflow.program import Program
from varflow.simulate.plan import Plan
from varflow.simulate.sizes import number

STREAM = 1
"""Version of the random numbers: which words make which element of which tensor, and which tensors a draw reads.
It grows with every change after which a seed gives other draws; rounding is no such change."""

PACKAGES = ("numpy", "sympy", "numba", "llvmlite")


def digest(*parts: str) -> str:
    """A hash of texts, in hexadecimal digits."""
    found = blake2b(digest_size=32)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def program_hash(program: Program) -> str:
    """A hash of a program with numbers for all symbols: instructions, shapes, weights, names. Numbers count by
    their float64, however they are written."""
    steps = (f"{canonical(s.primitive)} {s.args} {canonical(s.shape)} {s.backward}" for s in program)
    weights = (canonical(w) for _, w in sorted(program.weights.items()))
    names = f"{sorted(program.values.items())} {sorted(program.gradients.items())} {program.outputs}"
    return digest(*steps, *weights, names)


def plan_hash(plan: Plan) -> str:
    """A hash of what a draw does beyond its program: samples, and which weights are collapsed."""
    collapsed = sorted(plan.revealing)
    return digest(str(plan.samples), repr(collapsed), repr(sorted(plan.columns.items())))


def canonical(value: object) -> str:
    """Text of frozen dataclasses, tuples, expressions and plain values, equal for equal meanings."""
    if isinstance(value, sp.Basic):
        return _expression(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(canonical, value))})"
    if dataclasses.is_dataclass(value):
        fields = (f"{f.name}={canonical(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(fields)})"
    return repr(value)


@lru_cache(maxsize=65536)
def _expression(expr: sp.Basic) -> str:
    return repr(number(expr, "a number")) if getattr(expr, "is_number", False) else str(sp.srepr(expr))


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of the text of the simulation's own modules."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return digest(*(text for file in files for text in (file.name, file.read_text(encoding="utf-8"))))


@lru_cache(maxsize=1)
def arithmetic() -> dict[str, str]:
    """What rounding may depend on: versions of packages, the processor, the simulation's code."""
    from llvmlite import binding

    from varflow import __version__

    found = {"varflow": __version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES}
    return found | {"processor": str(binding.get_host_cpu_name()), "code": code_hash()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
