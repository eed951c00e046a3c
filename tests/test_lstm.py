"""The unrolled LSTM: its lowering against torch.nn.LSTM, its laws against brute force, collapsed against sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

import varflow as vf
from tests.reference_interpreter import draw, interpret, weight_gradient
from varflow.load import from_text
from varflow.load.shipped import graph_folder
from varflow.lowering import lower
from varflow.program import Program
from varflow.simulate.cpu import Simulator

torch: Any = pytest.importorskip("torch")
STEPS, FORGET = 20, 1.0


def program(width: int) -> Program:
    return lower(vf.load("lstm").bind({"n": width}))


def lstm(width: int, w: Any, u: Any) -> Any:
    """PyTorch's, whose gates come in the same order: input, forget, cell, output."""
    made = torch.nn.LSTM(width, width, dtype=w.dtype)
    biases = torch.zeros(2, 4 * width, dtype=w.dtype)
    biases[0, width : 2 * width] = FORGET
    for name, value in (("weight_ih_l0", w), ("weight_hh_l0", u), ("bias_ih_l0", biases[0]), ("bias_hh_l0", biases[1])):
        getattr(made, name).data = value
    return made


def test_lowering_is_that_of_torch() -> None:
    n, samples, p = 7, 3, program(7)
    given = draw(p, samples, np.random.default_rng(1))
    values = interpret(p, given)
    w = torch.tensor(given.weights["W"])
    layer = lstm(n, w[:, :n], w[:, n:])
    x = torch.tensor(given.inputs["x"]).reshape(samples, STEPS + 1, n).requires_grad_()
    states, (_, cell) = layer(x[:, :STEPS].transpose(0, 1))
    out = torch.cat([torch.zeros(samples, n), states.transpose(0, 1).reshape(samples, -1)], dim=1)
    (cotangent,) = given.cotangents.values()
    out.backward(torch.tensor(cotangent).reshape(out.shape))
    assert values[p.values["step[19].all"]].reshape(out.shape) == pytest.approx(out.detach().numpy(), abs=1e-12)
    assert values[p.values["step[19].c"]].reshape(samples, n) == pytest.approx(cell[0].detach().numpy(), abs=1e-12)
    assert values[p.gradients["x"]].reshape(x.shape) == pytest.approx(x.grad.numpy(), abs=1e-12)
    theirs = torch.cat([layer.weight_ih_l0.grad, layer.weight_hh_l0.grad], dim=1)
    assert weight_gradient(p, values, "W") == pytest.approx(theirs.numpy(), abs=1e-11)


def shorter(steps: int) -> vf.Network:
    """The same network of fewer steps."""
    text = (graph_folder() / "lstm.yaml").read_text(encoding="utf-8").replace("repeat: 20", f"repeat: {steps}")
    return from_text(text.replace("21*n", f"{steps + 1}*n"))


def brute_force(steps: int, width: int, draws: int, samples: int) -> dict[tuple[str, str], Any]:
    """Second moments in every draw; gradients of cells and states by autograd."""
    torch.manual_seed(5)
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(draws):
        w, u = (torch.randn(4 * width, width) / width**0.5 for _ in range(2))
        cell = state = torch.zeros(samples, width)
        kept: dict[str, Any] = {}
        for t in range(steps):
            z = (torch.randn(samples, width).requires_grad_() @ w.T + state @ u.T)
            i, f, g, o = z.chunk(4, dim=1)
            cell = torch.sigmoid(f + FORGET) * cell + torch.sigmoid(i) * torch.tanh(g)
            state = torch.sigmoid(o) * torch.tanh(cell)
            kept |= {f"step[{t}].z": z, f"step[{t}].c": cell, f"step[{t}].h": state}
        for value in kept.values():
            value.retain_grad()
        states = torch.stack([kept[f"step[{t}].h"] for t in range(steps)])
        states.backward(torch.randn_like(states))
        for name, value in kept.items():
            found.setdefault(("second_moment", name), []).append(float(value.detach().square().mean()))
            found.setdefault(("grad_second_moment", name), []).append(float(value.grad.square().mean()))
    return {key: np.array(rows) for key, rows in found.items()}


@pytest.mark.parametrize("steps", [4, pytest.param(STEPS, marks=pytest.mark.slow)])
def test_laws_are_those_of_brute_force(steps: int) -> None:
    """At 256 units; the numbers are those of a population, whose own error counts."""
    numbers = vf.derive(shorter(steps)).numeric({"n": 256})
    rows = brute_force(steps, 256, 60, 4)
    for (field, name), q in rows.items():
        mean, error = q.mean(), q.std(ddof=1) / len(q) ** 0.5
        theirs = numbers[name][field]
        assert error < 0.02 * mean
        assert abs(mean - theirs) < 5 * np.hypot(error, 0.006 * theirs), (field, name, mean, theirs)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_tape_draws_what_single_steps_draw(samples: int) -> None:
    run = Simulator(program(24), samples=samples, method="collapsed")
    assert run.tape is not None
    taped, run.tape = run.rows(0, 5), None
    assert taped[..., 1:] == pytest.approx(run.rows(0, 5)[..., 1:], rel=1e-3, nan_ok=True)


def test_collapsed_is_sampled_in_law() -> None:
    """Log norms of the last cell, of a gate, of all states, and of gradients at the first step and the inputs."""
    p, draws = program(24), 800
    nodes = ["step[19].c", "step[10].z", "step[19].all", "step[0].c", "step[9].h", "x"]
    runs = [Simulator(p, samples=2, seed=k, method=m, nodes=nodes) for k, m in enumerate(("collapsed", "sampled"))]
    ours, theirs = (run.rows(0, draws)[..., 1] for run in runs)
    columns = runs[0].plan.columns
    for key, column in columns.items():
        if theirs[:, column].any():
            assert ks_2samp(np.log(ours[:, column]), np.log(theirs[:, column])).pvalue > 1e-4, key
