"""The house: import order, what importing varflow costs, file sizes, and what every layer must state."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from varflow.fields import make_op
from varflow.ops import OPS
from varflow.symbols import positive

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "varflow"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
FLOORS = (
    ("errors", "symbols", "collector"),
    ("binormal", "waves", "calculus", "grammar", "printing", "activations", "gated", "expressions", "window"),
    ("program", "transpose"),
    ("ops",),
    ("fields", "network", "lowering", "rebuild", "policy"),
    ("laws",),
    ("derive", "evaluate", "fixed_points", "maps", "gain"),
    ("onevariable", "composition", "smallsignal", "depthmap", "meanfield", "criticality", "spectrum", "tailor",
     "variances"),
    ("simulate",),
    ("constants", "roots", "trials", "solve"),
    ("verify",),
    ("export",),
    ("load",),
    ("replay",),
    ("cli",),
    ("__main__",),
)
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}
HIDDEN_FROM_SIMULATION = {"laws", "derive", "gain", "policy", "constants", "roots", "solve", "verify", "export"}


def part(module: str) -> str:
    """The part of the house a module belongs to: its first name below ``varflow``."""
    name = module.split(".")[1]
    return name.split("_")[0] if name.startswith(("cli", "verify", "solve", "derive", "network", "gain",
                                                       "criticality", "tailor")) else name


def name_of(file: Path) -> str:
    return ".".join(("varflow", *file.relative_to(PACKAGE).with_suffix("").parts))


def imports(nodes: Iterator[ast.AST], known: set[str]) -> Iterator[str]:
    """Modules of varflow that import statements name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("varflow."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("varflow"):
            for a in node.names:
                full = f"{node.module}.{a.name}"
                if full in known or node.module != "varflow":
                    yield full if full in known else str(node.module)


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when the file is imported; those under TYPE_CHECKING do not."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from at_import(getattr(node, inner, []))


KNOWN = {name_of(f) for f in FILES}


@pytest.mark.parametrize("file", [f for f in FILES if f.parent != PACKAGE or f.stem != "__init__"], ids=name_of)
def test_imports_go_down(file: Path) -> None:
    here = part(name_of(file))
    assert here in FLOOR, f"{here} has no floor"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for module in imports(at_import(tree.body), KNOWN):
        assert FLOOR[part(module)] <= FLOOR[here], f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "simulate").rglob("*.py")), ids=name_of)
def test_simulation_sees_no_laws(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for module in imports(ast.walk(tree), KNOWN):
        assert part(module) not in HIDDEN_FROM_SIMULATION, f"{name_of(file)} imports {module}"


def loaded(statement: str) -> set[str]:
    """Names of the modules that are loaded after a statement in a new interpreter."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(answer.stdout))


def test_import_is_light() -> None:
    heavy = {"numba", "torch", "matplotlib", "onnx", "scipy.integrate", "sympy"}
    assert not heavy & loaded("import varflow")
    assert not heavy & loaded("import varflow.cli")


def test_running_simulation_loads_no_laws() -> None:
    modules = loaded("import pkgutil, importlib, varflow.simulate as s\n"
                     "for m in pkgutil.iter_modules(s.__path__): importlib.import_module(f'varflow.simulate.{m.name}')")
    assert not {m for m in modules if m.startswith("varflow.") and part(m) in HIDDEN_FROM_SIMULATION}


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_are_short(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 500


@pytest.mark.parametrize("name", OPS)
def test_layer_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.name == name
    assert op.__doc__, "what the layer computes"
    assert op.lemma.sentence.endswith(".")
    assert op.lemma.reference
    assert op.examples
    for fields in op.examples:
        assert isinstance(make_op(name, fields, positive), op)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.torch])
def test_layer_names_its_torch_module(name: str) -> None:
    nn = pytest.importorskip("torch.nn")
    module = str(OPS[name].torch).split("(")[0]
    assert hasattr(nn, module)
