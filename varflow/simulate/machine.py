"""Machine code of kernels: compiled by numba once, kept on disk, and loaded from there by LLVM alone.

Importing numba and reading its own cache cost more than most verifications. A file holds one function with all that it
calls, in numba's calling convention ``int f(void *result, void *exception, arguments...)``, under a stamp of the text
of every compiled module and a hash of its own bytes; its name has a hash of the argument types, of the processor, and
of the versions that made it. What such code takes from numba's runtime are its arrays, whose memory is counted: the two
functions for that are written below, for the layout that numba states.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Any

from llvmlite import binding

COMPILED_MODULES = (
    "elementary", "handlers", "jit", "kernels", "kernels_attention", "kernels_collapse", "kernels_gradient",
    "kernels_haar", "kernels_kept", "kernels_narrow", "kernels_pointwise", "kernels_pool", "kernels_product",
    "kernels_standardize", "kernels_tape", "kernels_window", "kinds", "lanes", "machine",
    "normals", "rng", "steps", "tiles", "vectors", "vm",
)  # fmt: skip


SERIES = "0.68."


def _stamp() -> str:
    files = sorted(Path(__file__).parent / f"{name}.py" for name in COMPILED_MODULES)
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()


STAMP = _stamp()
MEMORY_LAYOUT = "{i64, i8*, i8*, i8*, i64}"
"""References, destructor and its argument, data, size: what numba's code expects of counted memory."""
MEMORY = """
declare i8* @malloc(i64)
declare void @free(i8*)

define i8* @NRT_MemInfo_alloc_aligned(i64 %size, i32 %align) {
  %given = zext i32 %align to i64
  %small = icmp ult i64 %given, 64
  %wide = select i1 %small, i64 64, i64 %given
  %more = add i64 %wide, 40
  %all = add i64 %size, %more
  %block = call i8* @malloc(i64 %all)
  %missing = icmp eq i8* %block, null
  br i1 %missing, label %none, label %some
none:
  ret i8* null
some:
  %first = ptrtoint i8* %block to i64
  %end = add i64 %first, %more
  %part = urem i64 %end, %wide
  %start = sub i64 %end, %part
  %data = inttoptr i64 %start to i8*
  %head = bitcast i8* %block to {i64, i8*, i8*, i8*, i64}*
  %full = insertvalue {i64, i8*, i8*, i8*, i64} {i64 1, i8* null, i8* null, i8* null, i64 0}, i8* %data, 3
  %sized = insertvalue {i64, i8*, i8*, i8*, i64} %full, i64 %size, 4
  store {i64, i8*, i8*, i8*, i64} %sized, {i64, i8*, i8*, i8*, i64}* %head
  ret i8* %block
}

define void @NRT_MemInfo_call_dtor(i8* %block) {
  call void @free(i8* %block)
  ret void
}
"""
OWN = ("NRT_MemInfo_alloc_aligned", "NRT_MemInfo_call_dtor")
LIBRARY = ("malloc", "free", "memcpy", "memset", "memmove", "sqrt", "sqrtf", "exp", "log", "pow", "fmod", "fmodf")
"""Functions of the C library that kernels may call."""


@dataclass(frozen=True)
class Code:
    """Machine code of one function: the name of its entry, whether it calls numba's runtime, the object file."""

    entry: str
    runtime: bool
    text: bytes


@cache
def is_known() -> bool:
    """Whether code can be called without numba: tried with one series of numba on one kind of machine. Anywhere else,
    and with VARFLOW_PLAIN_NUMBA set, numba calls its code and keeps it."""
    tried = sys.platform == "linux" and platform.machine() == "x86_64" and version("numba").startswith(SERIES)
    return tried and not os.environ.get("VARFLOW_PLAIN_NUMBA")


def folder() -> Path:
    """Where machine code is kept: NUMBA_CACHE_DIR, or beside this file, or in the user's cache."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given)
    beside = Path(__file__).parent / "__pycache__"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "varflow"


@cache
def _target() -> Any:
    """This kind of processor; LLVM is made ready on the way (newer versions are so from the start, and refuse)."""
    for initialize in ("initialize", "initialize_native_target", "initialize_native_asmprinter"):
        try:
            getattr(binding, initialize)()
        except RuntimeError:
            continue
    return binding.Target.from_triple(binding.get_process_triple())


_engines: list[Any] = []
"""Engines own the code that they have loaded, and the machine that they are made with: they are kept."""


@cache
def _processor() -> tuple[str, str]:
    try:
        features = binding.get_host_cpu_features().flatten()
    except RuntimeError:
        features = ""
    return binding.get_host_cpu_name(), features


@cache
def _surroundings() -> str:
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_") and k != "NUMBA_CACHE_DIR")
    versions = version("numba"), version("llvmlite"), platform.python_version()
    return repr((_processor(), versions, platform.platform(), settings))


def _file(name: str, kinds: str) -> Path:
    key = hashlib.sha256((name + kinds + _surroundings()).encode()).hexdigest()[:16]
    return folder() / f"{name.rpartition('.')[2]}-{key}.code"


def _read(file: Path) -> Code | None:
    """The code in a file; None where there is none, or one of another text, or a damaged one."""
    try:
        head, _, text = file.read_bytes().partition(b"\n")
        said = json.loads(head)
        if said["stamp"] == STAMP and said["hash"] == _hash(said["entry"], said["runtime"], text):
            return Code(said["entry"], said["runtime"], text)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _hash(entry: str, runtime: bool, text: bytes) -> str:
    return hashlib.sha256(f"{entry} {runtime} {STAMP} ".encode() + text).hexdigest()


def _write(file: Path, code: Code) -> None:
    """Whole or not at all; a folder that cannot be written to is no error."""
    hashed = _hash(code.entry, code.runtime, code.text)
    head = {"stamp": STAMP, "hash": hashed, "entry": code.entry, "runtime": code.runtime}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(json.dumps(head).encode() + b"\n" + code.text)
        os.replace(part, file)
    except OSError:
        pass


def _loaded(code: Code) -> int:
    """Where code starts in memory; every object has an engine of its own, so that no two share a function."""
    if code.runtime:
        import_module("numba.core.registry").cpu_target.target_context.refresh()
    machine = _target().create_target_machine(cpu=_processor()[0], features=_processor()[1], opt=3, jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly("" if code.runtime else MEMORY), machine)
    _engines.append(engine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code.text))
    engine.finalize_object()
    return int(engine.get_function_address(code.entry))


def compiled(function: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> Code:
    """A Python function compiled by numba for arguments of these numba types, without wrappers for Python or C."""
    compiler: Any = import_module("numba.core.compiler")
    cpu_target = import_module("numba.core.registry").cpu_target
    flags = compiler.Flags()
    cpu_target.options.parse_as_flags(flags, {"error_model": "numpy", **options})
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.enable_pyobject = False
    contexts = cpu_target.typing_context, cpu_target.target_context
    with import_module("numba.core.compiler_lock").global_compiler_lock:
        for context in contexts:
            context.refresh()
        made = compiler.compile_extra(*contexts, function, arguments, import_module("numba.types").void, flags, {})
        made.library.get_pointer_to_function(made.fndesc.llvm_func_name)
    runtime = any(name not in LIBRARY and not (name in OWN and _same_memory()) for name in _borrowed(made.library))
    return Code(made.fndesc.llvm_func_name, runtime, made.library._get_compiled_object())


def _borrowed(library: Any) -> Iterator[str]:
    """Names that a library expects to find elsewhere."""
    module = library._final_module
    for thing in (*module.functions, *module.global_variables):
        if thing.is_declaration and not thing.name.startswith("llvm."):
            yield thing.name


def _same_memory() -> bool:
    return str(import_module("numba.core.runtime.nrtdynmod")._meminfo_struct_type) == MEMORY_LAYOUT


_lock = RLock()


def address_of(name: str, kinds: str, compile: Callable[[], Code]) -> int:
    """Where a function starts that is ready to be called: from the disk, or compiled and kept there."""
    with _lock:
        file = _file(name, kinds)
        code = _read(file)
        if code is None:
            code = compile()
            _write(file, code)
        return _loaded(code)
