"""The types that the CUDA kernels are launched with, for the tests that compile them without a GPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

types: Any = import_module("numba.cuda.types")

SHORT: dict[str, Any] = {
    "f": types.Array(types.float32, 1, "C"),
    "d": types.Array(types.float64, 1, "C"),
    "j": types.Array(types.int32, 1, "C"),
    "l": types.Array(types.int64, 1, "C"),
    "F": types.float32,
    "D": types.float64,
    "I": types.int64,
    "U": types.uint32,
    "W": types.uint64,
}
PRODUCT = "fff jjjj IIIIII I FIIU WWWW"
CELLS = "IIIIIIII"
TOKENS = "fff IIIII IIII IIII III"
OF_KERNEL = {
    "fill_kernel": "f IIIU FFF WWW",
    "mask_kernel": "f IU WWW",
    "correlate_kernel": "f III DDD F",
    "rank_kernel": "f j I",
    "forward_kernel": PRODUCT,
    "transposed_kernel": PRODUCT,
    "direct_kernel": "fff jj IIIIIII",
    "law_kernel": "ff III F",
    "pointwise_kernel": "f II j f II l ffffff",
    "moments_kernel": "f I d",
    "finish_kernel": "d II D d IIII",
    "energy_kernel": "fd III d",
    "mean_kernel": "ff" + CELLS,
    "standardize_kernel": "ff ID" + CELLS,
    "standardize_backward_kernel": "fff ID" + CELLS,
    "gradient_kernel": "ff j d IIIIII",
    "tokens_kernel": TOKENS,
    "few_tokens_kernel": TOKENS,
    "softmax_kernel": "ff IIIIII",
    "softmax_backward_kernel": "fff III",
    "copy_kernel": "ff IIII IIIII IIIII",
    "zero_kernel": "f I",
    "permute_kernel": "ff j III",
    "mix_kernel": "ff jjf III",
    "maximum_kernel": "ff jj IIIII",
    "returned_kernel": "fjf jj IIII",
    "patches_kernel": "ff j IIIII",
    "folded_kernel": "ff jj IIIII",
    "dots_kernel": "ffd III IIIIII",
    "factorize_kernel": "d IIII D",
    "solve_own_kernel": "dd IIIII",
    "solve_across_kernel": "dddd IIIIIIIII",
    "combine_kernel": "fdf IIIIII DI",
    "orthogonal_kernel": "fddf II DI",
}


def signature(name: str) -> tuple[Any, ...]:
    """The argument types of a kernel."""
    return tuple(SHORT[letter] for letter in OF_KERNEL[name].replace(" ", ""))
