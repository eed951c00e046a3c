"""The types of kernels' arguments as numba names them. Imported where something is compiled, and nowhere else."""

from __future__ import annotations

from collections import namedtuple
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

types: Any = import_module("numba.types")
from_dtype: Any = import_module("numba.np.numpy_support").from_dtype


@cache
def _named(fields: tuple[str, ...]) -> Any:
    return namedtuple("Fields", fields)


def type_of(kind: Any) -> Any:
    """The numba type of what `jit.kind_of` names."""
    if isinstance(kind, str):
        return types.boolean if kind == "bool" else from_dtype(np.dtype(kind))
    if len(kind) == 3:
        return types.Array(from_dtype(np.dtype(kind[0])), kind[1], kind[2])
    fields, kinds = kind
    parts = tuple(map(type_of, kinds))
    return types.NamedTuple(parts, _named(fields)) if fields else types.BaseTuple.from_types(parts)
