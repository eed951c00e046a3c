"""Solved initializations: textbook answers, merges, ties, depth, equations, and refusals."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest
import sympy as sp

import varflow as vf
from varflow.constants import shortened
from varflow.errors import SolveError, VarflowError
from varflow.laws.integral import GaussianExpectation
from varflow.laws.quadrature import evaluate
from varflow.roots import Root, solve_for, solve_system
from varflow.symbols import arg


def chain(function: str, depth: int = 2, symbolic: bool = True) -> vf.Network:
    net = vf.Network("chain")
    widths = ["d", *["n"] * depth, "k"] if symbolic else [48, *[96] * depth, 32]
    x = net.input("x", channels=widths[0])
    for i in range(depth):
        x = net.activation(net.linear(x, widths[i + 1], name=f"l{i}"), function, name=f"h{i}")
    net.linear(x, widths[-1], name="out")
    return net


def variance(solution: vf.Solution, name: str) -> sp.Expr:
    d = {s.name: s for s in solution[name].variance.free_symbols}
    return sp.nsimplify(solution[name].variance.subs({s: sp.Symbol(n) for n, s in d.items()}))


n, d, k = sp.symbols("n d k")
S = sp.Symbol("s", positive=True)


def number(root: Root) -> float:
    assert root.value is not None
    return float(root.value)


@pytest.mark.parametrize(("function", "gain"), [
    ("identity", 1), ("relu", 2), ("leaky_relu(0.2)", sp.Rational(25, 13)), ("abs", 1), ("tanh", 1), ("sin", 1)])
def test_forward_scale_of_known_activations(function: str, gain: sp.Expr) -> None:
    s = vf.solve(chain(function), preserve="forward")
    assert sp.cancel(variance(s, "l0") - gain / d) == 0
    assert sp.cancel(variance(s, "l1") - gain / n) == 0


@pytest.mark.parametrize("function", ["identity", "tanh"])
def test_glorot(function: str) -> None:
    assert variance(vf.solve(chain(function), preserve="forward"), "l0") == 1 / d
    assert variance(vf.solve(chain(function), preserve="backward"), "l0") == 1 / n
    assert sp.cancel(variance(vf.solve(chain(function), preserve="harmonic"), "l0") - 2 / (d + n)) == 0
    geometric = vf.solve(chain(function), preserve="geometric")["l0"].variance ** 2
    assert sp.cancel(geometric * sp.prod(geometric.free_symbols)) == 1


def test_saturating_answer_says_that_it_is_approximate() -> None:
    assert any("small signals" in note for note in vf.solve(chain("tanh")).notes)
    assert vf.solve(chain("relu")).notes == ()


def test_gelu_against_mpmath() -> None:
    s = float(vf.solve(chain("gelu", symbolic=False))["l0"].init_gain) ** 2
    root = mpmath.sqrt(s)
    moment = mpmath.quad(lambda z: (root * z * mpmath.ncdf(root * z)) ** 2 * mpmath.npdf(z), [-12, 0, 12])
    assert abs(float(moment) - 1) < 1e-8


@pytest.mark.parametrize("policy", ["forward", "backward"])
def test_small_signals_take_both_sides_of_a_kink(policy: str) -> None:
    """tanh(x) and tanh(3 x) on the two sides of 0: E f^2 = (1 + 9) q / 2 for small q."""
    net = vf.Network("kinked")
    h = net.activation(net.linear(net.input("x", "n"), "n", name="w"), "Piecewise((tanh(x), x > 0), (tanh(3*x), True))")
    net.linear(h, "n", variance="1/n")
    assert vf.solve(net, preserve=policy).equations[0][2] == sp.Rational(1, 5)


@pytest.mark.parametrize("policy", ["forward", "backward"])
def test_an_activation_with_an_open_parameter_is_not_taken_for_saturating(policy: str) -> None:
    net = vf.Network("elu")
    net.linear(net.activation(net.linear(net.input("x", "n"), "n", name="w"), "elu(a)"), "n", variance="1/n")
    with pytest.raises(SolveError, match="depends on a"):
        vf.solve(net, preserve=policy)
    answers = vf.solve(net.bind({"a": 2}), preserve=policy)
    assert 0.8 < float(answers.equations[0][2]) < 0.95


def test_a_saturating_activation_with_an_open_parameter() -> None:
    net = vf.Network("tanh")
    net.linear(net.activation(net.linear(net.input("x", "n"), "n", name="w"), "tanh(a*x)"), "n", variance="1/n")
    assert str(vf.solve(net).equations[0][2]) == "a**(-2)"


def test_backward_gelu_keeps_the_gradient() -> None:
    net = chain("gelu", depth=1, symbolic=False)
    solved = vf.solve(net, preserve="backward").derivation
    assert solved["x"].numeric()["grad_second_moment"] == pytest.approx(1, rel=1e-8)


def test_solved_chain_preserves() -> None:
    forward = vf.solve(chain("relu", 6)).derivation
    assert {forward[f"h{i}"].second_moment for i in range(6)} == {1}
    backward = vf.solve(chain("relu", 6), preserve="backward").derivation
    assert {backward[f"h{i}"].grad_second_moment for i in range(6)} == {1}


def residual(scale: str | None = None, repeat: str | int = "L", norm: bool = False) -> vf.Network:
    block = vf.Network("block")
    x = block.input("x", channels="n")
    h = block.layer_norm(x, name="ln") if norm else x
    h = block.linear(block.relu(block.linear(h, "n", name="fc1")), "n", name="fc2")
    block.add(x, block.scale(h, scale) if scale else h, name="y")
    net = vf.Network("residual")
    net.block(block, net.input("x", channels="n"), repeat=repeat, name="blk")
    return net


def test_branch_end_gets_unit_gain_and_the_stream_doubles() -> None:
    d = vf.solve(residual()).derivation
    depth = d.network.symbols["L"]
    assert sp.simplify(d["blk"].second_moment / 2**depth) == 1
    assert sp.simplify(d["x"].grad_second_moment / 2**depth) == 1


def test_scale_on_a_branch_is_left_to_act() -> None:
    d = vf.solve(residual("1/sqrt(L)")).derivation
    depth = d.network.symbols["L"]
    assert sp.limit(d["blk"].second_moment, depth, sp.oo) == sp.E
    assert vf.solve(residual("1/sqrt(L)"))["blk.fc2"].init_gain == 1


def test_growth_over_symbolic_depth() -> None:
    s = vf.solve(residual(), growth="E")
    depth = s.network.symbols["L"]
    assert sp.simplify(s["blk.fc2"].init_gain ** 2 - (sp.exp(1 / depth) - 1)) == 0
    assert sp.simplify(s.derivation["blk"].second_moment) == sp.E


@pytest.mark.parametrize(("repeat", "why"), [("L", r"\(beta \+ 1\)\*\*L = 1/2 has no positive solution"),
                                             (5, r"values from 1 to .* none of them 0\.5")])
def test_growth_that_no_share_reaches(repeat: Any, why: str) -> None:
    """Over L blocks the answer was a negative variance."""
    with pytest.raises(SolveError, match=why):
        vf.solve(residual(repeat=repeat), growth=sp.Rational(1, 2))


def test_answers_that_are_positive_for_probabilities_only() -> None:
    u, p = sp.Symbol("u", positive=True), sp.Symbol("p")
    assert solve_for(u, 1 - p, u).value == 1 - p
    assert solve_for(u + 1, -p**2, u).value is None


def test_growth_over_a_number_of_blocks() -> None:
    s = vf.solve(residual(repeat=5), growth=3)
    assert s.derivation["blk"].numeric({"n": 64})["second_moment"] == pytest.approx(3, rel=1e-10)


@pytest.mark.parametrize("norm", [False, True])
def test_symbolic_depth_equals_unrolled(norm: bool) -> None:
    symbolic = vf.solve(residual(norm=norm)).derivation
    numbers = symbolic.numeric({"n": 64, "L": 7})
    unrolled = vf.derive(symbolic.network.bind({"n": 64, "L": 7}))
    for i in (0, 3, 6):
        at = symbolic.numeric({"n": 64, "L": 7, "l": i})
        for name in ("fc1", "fc2", "y"):
            mine, other = at[f"blk[l].{name}"], unrolled[f"blk[{i}].{name}"].numeric()
            for field in ("second_moment", "grad_second_moment"):
                assert mine[field] == pytest.approx(other[field], rel=1e-10)
    assert numbers["x"]["grad_second_moment"] == pytest.approx(unrolled["x"].numeric()["grad_second_moment"])


def test_map_without_closed_form_is_null_and_still_has_numbers() -> None:
    block = vf.Network("block")
    block.gelu(block.linear(block.input("x", channels="n"), "n", name="fc", variance="2/fan_in"))
    net = vf.Network("net")
    net.block(block, net.input("x", channels="n"), repeat="L", name="blk")
    d = vf.derive(net)
    assert d["blk"].second_moment is None
    unrolled = vf.derive(net.bind({"n": 64, "L": 4}))
    assert d["blk"].numeric({"n": 64, "L": 4})["second_moment"] == unrolled["blk"].numeric()["second_moment"]


@pytest.mark.parametrize("tail", [False, True])
def test_numbers_around_a_map_without_closed_form(tail: bool) -> None:
    """Both ends of the block and what follows it, against the unrolled network; and the document does not fail."""

    def build(repeat: str | int) -> vf.Network:
        block = vf.Network("block")
        z = block.input("z", channels="n")
        block.add(z, block.tanh(block.linear(z, "n", variance="1/fan_in", name="f")), name="y")
        net = vf.Network("net")
        stream = net.block(block, net.input("x", channels="n"), repeat=repeat, name="st")
        if tail:
            net.scale(stream, 3, name="o")
        return net

    d = vf.derive(build("L"))
    mine, other = d.numeric({"n": 64, "L": 4}), vf.derive(build(4)).numeric({"n": 64})
    for name in ("x", "st", *(["o"] if tail else [])):
        for field in ("second_moment", "grad_second_moment"):
            assert mine[name][field] == pytest.approx(other[name][field], rel=1e-12)
    for name in d:
        assert vf.explain(d, name)


def test_budgets_share_a_sum() -> None:
    net = vf.Network("branches")
    x = net.input("x", channels="n")
    net.add(*(net.linear(net.relu(net.linear(x, "n", name=f"a{i}")), "n", name=f"b{i}") for i in range(3)), name="y")
    s = vf.solve(net, budgets={f"b{i}": "1/3" for i in range(3)})
    assert s.derivation["y"].second_moment == 1
    assert vf.solve(net).derivation["y"].second_moment == 3


def test_tied_weight_has_one_condition_for_the_whole_path() -> None:
    net = vf.Network("tied")
    h = net.relu(net.linear(net.input("x", channels="n"), "n", weight="W"))
    net.linear(h, "n", weight="W", transpose=True, name="y")
    s = vf.solve(net)
    assert sp.simplify(s["W"].init_gain ** 2 - 2 / sp.sqrt(3)) == 0
    assert sp.simplify(s.derivation["y"].second_moment) == 1


def test_rectangular_tied_weight_solves_and_lowers_again() -> None:
    net = vf.Network("tied")
    h = net.relu(net.linear(net.input("x", channels=32), 96, weight="W"))
    net.linear(h, 32, weight="W", transpose=True, name="y")
    assert vf.solve(net).derivation["y"].numeric()["second_moment"] == pytest.approx(1)


def test_dropout_and_sparsity_are_compensated() -> None:
    net = vf.Network("d")
    net.dropout(net.relu(net.linear(net.input("x", channels="n"), "m", keep="1/4", name="a")), "p")
    s = vf.solve(net)
    p, width = s.network.symbols["p"], s.network.symbols["n"]
    assert sp.simplify(s["a"].variance - 8 * (1 - p) / width) == 0


def test_equations_of_the_users_own() -> None:
    net = chain("relu", 1)
    s = vf.solve(net, equations=["q_out = 3"], unknowns=["s_out"])
    assert s["out"].init_gain == sp.sqrt(3)
    two = vf.solve(net, equations=["q_h0 = 1/2", "q_out = 2"], unknowns=["s_l0", "s_out"])
    assert (two["l0"].init_gain ** 2, two["out"].init_gain ** 2) == (1, 4)


def test_conditions_without_solution_say_why() -> None:
    with pytest.raises(SolveError):
        vf.solve(chain("relu", 1), equations=["q_out = -1"], unknowns=["s_out"])
    with pytest.raises(VarflowError):
        vf.solve(chain("relu", 1), preserve="sideways")
    with pytest.raises(SolveError, match="equation"):
        vf.solve(chain("relu", 1), equations=["q_out = s_l0"], unknowns=["s_out", "s_l0"])


def test_two_positive_solutions_are_both_named() -> None:
    v = sp.Symbol("v", positive=True)
    root = solve_for(v**2 + 2, 3 * v, v)
    assert (root.value, root.others) == (1, (2,))


def test_answers_are_checked_by_substitution() -> None:
    v = sp.Symbol("v", positive=True)
    assert solve_for(v + 1, sp.S.Zero, v).value is None
    assert number(solve_for(sp.exp(v) * v, sp.S(2), v)) == pytest.approx(0.8526055020137254, rel=1e-12)


def test_coupled_equations_are_solved_together() -> None:
    a, b = sp.symbols("a b", positive=True)
    x, y = solve_system([sp.Eq(a * b, 6), sp.Eq(a + b, 5)], [a, b])
    assert sorted([number(x), number(y)]) == pytest.approx([2, 3], rel=1e-8)


def test_uniform_and_truncated_say_how_to_draw() -> None:
    net = vf.Network("draws")
    x = net.input("x", channels="n")
    x = net.linear(x, "m", name="u", distribution="uniform")
    net.linear(x, "k", name="t", distribution="truncated_normal")
    s = vf.solve(net, preserve="harmonic")
    assert s["u"].draw == "uniform on (-a, a), a = sqrt(6)/sqrt(m + n)"
    drawn = float(str(s["t"].draw).split("std ")[1].split("*")[0])
    assert drawn == pytest.approx(1 / 0.87962566103423978, rel=1e-12)


def image(**options: Any) -> vf.Network:
    """Two convolutions and a function between."""
    net = vf.Network("image")
    h = net.conv(net.input("x", "c", (8, 8)), "2*c", 3, padding=1, padding_mode="circular", name="f", **options)
    net.conv(net.relu(h), "c", 3, padding=1, padding_mode="circular", name="o", **options)
    return net


def test_convolutions_preserve_gradients() -> None:
    s = vf.solve(image(), preserve="backward")
    width = s.network.symbols["c"]
    assert (s["f"].variance, s["o"].variance) == (1 / (9 * width), 1 / (9 * width))
    back = s.derivation.numbers({"c": 16})
    assert back.gradient("x") == pytest.approx(back.gradient("o"))
    assert vf.solve(image(groups="c/4"), preserve="backward")["f"].init_gain != 0


@pytest.mark.parametrize(("op", "fields", "width"), [
    ("glu", {}, 2), ("maxout", {"k": 2}, 2), ("maxout", {"k": 3}, 3), ("crelu", {}, 1)])
@pytest.mark.parametrize("preserve", ["forward", "backward"])
def test_layers_of_parts_of_one_product(op: str, fields: dict[str, Any], width: int, preserve: str) -> None:
    """Gates and maxima belong to the weight in front of them, as an activation does."""
    net = vf.Network(op)
    f = net.linear(net.input("x", 64), 64 * width, name="f")
    h = net.apply(op, f, name="h", **fields)
    net.linear(h, 128 if op == "crelu" else 64, name="o")
    s = vf.solve(net, preserve=preserve)
    numbers = s.derivation.numbers({})
    if preserve == "forward":
        assert numbers.second("h") == pytest.approx(numbers.second("x"), rel=1e-3)
    else:
        assert numbers.gradient("x") == pytest.approx(numbers.gradient("h"), rel=1e-3)
    assert not s["f"].variance.free_symbols


@pytest.mark.parametrize(("given", "why"), [
    ({"equations": 3}, "an equation, or a list of them, is an int"),
    ({"equations": [3]}, "an equation is an int"),
    ({"unknowns": ["s_l0"]}, "nothing determines s_l0"),
    ({"equations": "s_l0 = 3", "unknowns": ["s_l9"]}, r"no unknown 's_l9'\n  instead: did you mean 's_"),
    ({"growth": 0}, "a growth of 0"),
    ({"growth": -2}, "a growth of -2"),
    ({"budgets": {"l9": 1}}, r"'l9', which is not solved for\n  instead: one of l0, l1, out"),
    ({"budgets": {"l0": -1}}, "the budget of 'l0' is -1"),
    ({"budgets": 3}, "budgets is an int"),
])
def test_conditions_that_are_none(given: dict[str, Any], why: str) -> None:
    """A budget for an unknown weight was passed over, one of -1 was a negative variance."""
    with pytest.raises(VarflowError, match=why):
        vf.solve(chain("relu"), **given)


def test_one_equation_is_a_list_of_one() -> None:
    s = vf.solve(chain("relu"), equations="s_l0 = 3", unknowns="s_l0")
    assert variance(s, "l0") == 3 / d and not any("far from 1" in note for note in s.notes)


def test_scales_far_from_one_are_pointed_out() -> None:
    s = vf.solve(chain("relu"), equations="s_l0 = 1e-9")
    assert [note for note in s.notes if "s_l0 = 1e-09 is far from 1" in note]


def test_a_backward_condition_without_a_solution_says_so() -> None:
    """A sigmoid of values of second moment 1e6: the widths were blamed, all of which are numbers."""
    net = vf.Network("saturated")
    x = net.input("x", channels=32, second_moment=10**6)
    net.sigmoid(net.linear(x, 32, name="a"))
    notes = " ".join(vf.solve(net, preserve="backward").notes)
    assert "the true one has no solution" in notes and "numbers for the widths" not in notes


def test_pairs_of_roots_are_found_on_a_coarse_grid() -> None:
    """A double integral is looked at sparsely, and closely where it may touch zero."""
    f = sp.tanh(arg(0)) * sp.tanh(arg(1)) + 1
    mean = GaussianExpectation(f, (arg(0), arg(1)), (S, S / 2, S))
    low = float(evaluate(mean, {S: 1.0}))
    high = float(evaluate(mean, {S: 1.1}))
    root = solve_for((mean - low) * (mean - high), sp.S.Zero, S)
    assert [number(root), *map(float, root.others)] == pytest.approx([1.0, 1.1], rel=1e-9)


def test_long_constants_are_numbers_in_what_follows() -> None:
    """A constant of hundreds of operations is exact where it is the answer; answers that rest on it are numbers."""
    constant = sp.Add(*(sp.sqrt(sp.prime(k)) * sp.exp(sp.Rational(1, k)) for k in range(1, 30)))
    root = solve_for(S**2 * constant - S, sp.Integer(3), S)
    assert root.closed_form and root.value is not None and not root.value.has(sp.Float)
    assert number(root) == pytest.approx((1 + (1 + 12 * float(constant)) ** 0.5) / (2 * float(constant)))
    assert shortened(S * constant).atoms(sp.Float) and shortened(S * sp.sqrt(2)) == S * sp.sqrt(2)
