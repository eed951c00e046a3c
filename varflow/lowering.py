"""From a network to its primitive program: shapes, then each layer's lowering, then the transpose."""

from __future__ import annotations

from collections import Counter

import networkx as nx
import sympy as sp

from varflow.errors import ErrorList, InputError, ShapeError, VarflowError
from varflow.network import BlockNode, InputNode, Network
from varflow.ops.base import Op
from varflow.program import Bias, Input, Lowering, Program, Repeat, Shape, Standardize
from varflow.symbols import STREAM, arg
from varflow.transpose import transpose

Shapes = dict[str, tuple[Shape, ...]]


def order(network: Network) -> list[str]:
    """Nodes so that each stands behind its inputs, otherwise in the order they were added."""
    rank = {n: i for i, (n, _) in enumerate(network.nodes())}
    try:
        return list(nx.lexicographical_topological_sort(network.graph, key=rank.__getitem__))
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(str(e[0]) for e in nx.find_cycle(network.graph))
        raise InputError(f"the graph has a cycle: {cycle}", network.name,
                         "a computation graph has none", "unroll recurrent connections") from None


def infer_shapes(network: Network, given: tuple[Shape, ...] | None = None) -> Shapes:
    """Output shapes of every node (``given``: those of the inputs, inside a block).

    Raises ErrorList with every mismatch, each with its place, node and port.
    """
    shapes: Shapes = {}
    errors: list[VarflowError] = []
    given_by_name = dict(zip(_input_names(network), given, strict=True)) if given else {}
    for name in order(network):
        try:
            shapes[name] = node_shapes(network, name, shapes, given_by_name)
        except KeyError:
            continue
        except VarflowError as error:
            errors.append(_placed(error, network.where(name)))
    if given is None:
        errors += _repeated_outputs(network)
    if errors:
        raise ErrorList([e for err in errors for e in (err.errors if isinstance(err, ErrorList) else (err,))])
    return shapes


def _repeated_outputs(network: Network) -> list[InputError]:
    """Outputs declared more than once; a block may return a value several times, each to its own readers."""
    times = Counter(h.key for h in network.declared_outputs)
    return [InputError(f"output {key!r} is declared {k} times", network.where(key.split(":")[0]),
                       "one independent cotangent arrives at each output",
                       f"{key!r} once; for {k} cotangents, identity layers behind it")
            for key, k in times.items() if k > 1]


def _placed(error: VarflowError, where: str) -> VarflowError:
    if error.where or isinstance(error, ErrorList):
        return error
    return type(error)(error.what, where, error.why, error.instead)


def _input_names(network: Network) -> list[str]:
    return [n for n, layer in network.nodes() if isinstance(layer, InputNode)]


def node_shapes(network: Network, name: str, shapes: Shapes, given: dict[str, Shape]) -> tuple[Shape, ...]:
    """Output shapes of one node over those of the nodes before it. Raises ShapeError."""
    layer = network.node(name)
    if isinstance(layer, InputNode):
        return (given.get(name, Shape(layer.channels, layer.positions)),)
    args = [_read_port(shapes[h.node], h.port, h.key) for h in network.inputs_of(name)]
    if isinstance(layer, BlockNode):
        return _block_shapes(layer, tuple(args))
    least, most = layer.arity
    if len(args) < least or (most is not None and len(args) > most):
        raise ShapeError(f"a layer of kind {layer.name!r} takes {_count(least, most)}, and has {len(args)}",
                         why="this is how many it is defined for",
                         instead="connect as many inputs as it takes" if args else "in: NAME, the node that it reads")
    try:
        outputs = layer.infer(*args)
    except ShapeError as error:
        ports = ", ".join(f"input {k} is {h.key} {shape}" for k, (h, shape)
                          in enumerate(zip(network.inputs_of(name), args, strict=True)))
        why = "; ".join(part for part in (error.why, ports) if part)
        raise ShapeError(error.what, error.where, why, error.instead) from None
    for size in (s for shape in outputs for s in (shape.channels, *shape.positions)):
        if size.is_number and not (size.is_integer and size.is_positive):
            raise ShapeError(f"layer {layer.name!r} has an output of size {size}",
                             why="a size is a positive whole number", instead="sizes that its input can give")
    return outputs


def _count(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least} input(s)"
    return f"{least} input(s)" if least == most else f"{least} to {most} inputs"


def _read_port(outputs: tuple[Shape, ...], port: str, key: str) -> Shape:
    index = int(port) if port.isdigit() else (0 if port == "" and len(outputs) == 1 else -1)
    if not 0 <= index < len(outputs):
        ports = ", ".join(str(i) for i in range(len(outputs)))
        raise ShapeError(f"{key!r} is not an output port", instead=f"one of the ports {ports}")
    return outputs[index]


def _block_shapes(layer: BlockNode, args: tuple[Shape, ...]) -> tuple[Shape, ...]:
    expected = len(_input_names(layer.body))
    if len(args) != expected:
        raise ShapeError(f"the block {layer.body.name!r} has {expected} input(s) and gets {len(args)}",
                         instead="one value per input node of the block")
    out = _once(layer, args)
    if layer.repeat == 1 or out == args:
        return out
    if not layer.repeat.is_number or len(out) != len(args):
        raise ShapeError(f"the repeated block {layer.body.name!r} maps {_show(args)} to {_show(out)}",
                         why="what it returns is its next input",
                         instead="outputs shaped like its inputs, or a number of repeats")
    for _ in range(int(layer.repeat) - 1):
        args, out = out, _once(layer, out)
        if out == args:
            break
    return out


def _once(layer: BlockNode, args: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """What one repeat of a block returns."""
    inner = infer_shapes(layer.body, args)
    return tuple(_read_port(inner[h.node], h.port, h.key) for h in layer.body.outputs())


def _show(shapes: tuple[Shape, ...]) -> str:
    return ", ".join(str(s) for s in shapes)


def lower(network: Network, backward: bool = True) -> Program:
    """The primitive program of a network, with its backward pass unless told otherwise.

    Blocks with a number of repeats are unrolled; one with a symbol becomes one Repeat primitive.
    Raises ErrorList for a network whose shapes do not fit.
    """
    infer_shapes(network)
    program = Program()
    build = Lowering(program)
    results = _lower_into(build, network, {}, "")
    program.outputs = _each_once(build, results)
    if backward:
        transpose(program)
    return program


def _each_once(build: Lowering, results: list[int]) -> list[int]:
    """The outputs, a value that several nodes have (a block that passes its input on) copied: each has a cotangent."""
    found: list[int] = []
    for value in results:
        found.append(build.pointwise(arg(0), value) if value in found else value)
    return found


def parameters(network: Network) -> sp.Expr:
    """How many numbers a network would train: entries of its weights (shared ones once, sparse ones as kept),
    biases, and gamma and beta for every channel of a normalization (gamma alone in an RMS norm, neither in an
    instance norm: as torch.nn by default)."""
    return sp.expand(_trained(lower(network, backward=False)))


def _trained(program: Program) -> sp.Expr:
    """Trained numbers of a program; those of a repeated body times its repeats."""
    total = sp.Add(*(w.keep * w.rows * w.columns * w.taps for w in program.weights.values()))
    for step in program:
        channels = step.shape.channels
        match step.primitive:
            case Bias():
                total += channels
            case Standardize(axis="group", groups=groups) if groups == channels:
                continue
            case Standardize(center=center):
                total += (2 if center else 1) * channels
            case Repeat(count=count, body=body):
                total += count * _trained(body)
    return total


def _lower_into(build: Lowering, network: Network, given: dict[str, int], prefix: str) -> list[int]:
    values: dict[str, int] = {}
    for name in order(network):
        layer = network.node(name)
        if isinstance(layer, InputNode):
            values[name] = given[name] if name in given else _lower_input(build, name, layer)
            if name not in given:
                build.program.values[prefix + name] = values[name]
            continue
        args = tuple(values[h.key] for h in network.inputs_of(name))
        if isinstance(layer, BlockNode):
            outs = _lower_block(build, layer, args, prefix + name)
        else:
            outs = _lower_op(build, layer, args, prefix + name, network.where(name))
        for port, value in zip(_ports(len(outs)), outs, strict=True):
            values[name + port] = value
            build.program.values[prefix + name + port] = value
    return [values[h.key] for h in network.outputs()]


def _lower_op(build: Lowering, layer: Op, args: tuple[int, ...], path: str, where: str) -> tuple[int, ...]:
    build.node = path
    try:
        return layer.lower(build, *args)
    except VarflowError as error:
        raise _placed(error, where) from None


def _ports(count: int) -> list[str]:
    return [""] if count == 1 else [f":{i}" for i in range(count)]


def _lower_input(build: Lowering, name: str, layer: InputNode) -> int:
    build.node = name
    primitive = Input(name, layer.mean, layer.second_moment, layer.position_correlation,
                      layer.sample_correlation)
    value = build.source(primitive, Shape(layer.channels, layer.positions))
    build.program.inputs.append(value)
    return value


def _lower_block(build: Lowering, layer: BlockNode, args: tuple[int, ...], path: str) -> tuple[int, ...]:
    names = _input_names(layer.body)
    if not layer.repeat.is_number:
        return _lower_symbolic(build, layer, args, path)
    for i in range(int(layer.repeat)):
        inner = f"{path}." if layer.repeat == 1 else f"{path}[{i}]."
        args = tuple(_lower_into(build, layer.body, dict(zip(names, args, strict=True)), inner))
    return args


def _lower_symbolic(build: Lowering, layer: BlockNode, args: tuple[int, ...], path: str) -> tuple[int, ...]:
    body = Program()
    inner = Lowering(body)
    names = _input_names(layer.body)
    starts = []
    for name, value in zip(names, args, strict=True):
        inner.node = name
        starts.append(inner.source(Input(name, sp.S.Zero, STREAM, sp.nan, sp.nan), build.shape(value)))
    body.inputs = starts
    body.outputs = _lower_into(inner, layer.body, dict(zip(names, starts, strict=True)), f"{path}[l].")
    transpose(body)
    if len(args) != 1:
        raise InputError("a block repeated a symbolic number of times has one input and one output", path,
                         instead="a number of repeats, or one stream")
    build.node = path
    return (build.emit(Repeat(path, layer.repeat, body), args, build.shape(args[0])),)
