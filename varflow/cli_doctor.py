"""``varflow doctor``: what is installed, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

from varflow import __version__
from varflow.cli_print import SCHEMA, Cell, emit, emit_json, table

CORE = ("numpy", "scipy", "sympy", "mpmath", "networkx", "numba", "pydantic", "ruamel.yaml", "lark", "typer", "rich",
        "jinja2")
EXTRAS = {
    "plot": ("matplotlib", "pictures of laws and graphs"),
    "cuda": ("numba_cuda", "simulation on an NVIDIA GPU"),
    "torch": ("torch", "reading PyTorch models"),
    "onnx": ("onnx", "reading ONNX files"),
    "dask": ("distributed", "simulation on a cluster"),
    "test": ("pytest", "running the tests"),
}
LATEX = "apt-get install texlive-latex-base texlive-latex-recommended lmodern, or your system's TeX Live"
Line: TypeAlias = tuple[str, bool, str]
"""What, whether it is there, and what is found or what to do."""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _core() -> list[Line]:
    versions = [(name, _version(name)) for name in CORE]
    own: list[Line] = [("varflow", True, f"{__version__}, {Path(__file__).parent}"),
                       ("python", True, f"{platform.python_version()}, {sys.executable}")]
    return own + [(name, version != "missing", version) for name, version in versions]


def _threads() -> Line:
    from varflow.simulate.jit import get_threads

    return "threads", True, f"{get_threads()} for simulation, {os.cpu_count()} processors"


def _cache() -> Line:
    from varflow.simulate.machine import folder as cache_folder

    folder = cache_folder()
    place = folder if folder.exists() else folder.parent
    if os.access(place, os.W_OK):
        return "kernel cache", True, str(folder)
    return "kernel cache", False, f"{folder} cannot be written: set NUMBA_CACHE_DIR to a folder that can"


def _latex() -> Line:
    found = shutil.which("pdflatex")
    return "LaTeX", found is not None, found or f"no pdflatex, so no PDF documents: {LATEX}"


def _cuda() -> Line:
    if importlib.util.find_spec("numba_cuda") is None:
        return "CUDA", False, 'numba-cuda is not installed: pip install "varflow[cuda]"'
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "CUDA", False, "no NVIDIA driver (nvidia-smi) on this machine"
    answer = subprocess.run([smi, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True,
                            timeout=20, check=False)
    if answer.returncode != 0:
        return "CUDA", False, re.sub(r"\s+", " ", answer.stderr or answer.stdout)[:200]
    return "CUDA", True, answer.stdout.strip().replace("\n", ", ")


def _extras() -> list[Line]:
    lines: list[Line] = []
    for extra, (module, purpose) in EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        lines.append((f"extra {extra}", found, purpose if found else f'{purpose}: pip install "varflow[{extra}]"'))
    return lines


def lines() -> list[Line]:
    """Every line of the report."""
    return [*_core(), _threads(), _cache(), _latex(), _cuda(), *_extras()]


def run(json: bool) -> None:
    """Print the report."""
    found = lines()
    if json:
        emit_json({"schema": SCHEMA, "parts": {n: {"found": ok, "detail": detail} for n, ok, detail in found}})
        return
    rows: list[list[Cell]] = [[name, "yes" if ok else "no", detail] for name, ok, detail in found]
    emit(table(["", "found", ""], rows))
