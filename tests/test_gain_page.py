"""docs/gains.md against the computation, and its claims against the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from varflow.cli_gain_page import CENTERED, RIGHT, SECOND, Compared, compared, page

PAGE = Path(__file__).resolve().parent.parent / "docs" / "gains.md"
TORCH_GAINS = {"relu": None, "leaky_relu(0.01)": None, "tanh": None, "sigmoid": None, "selu": None}


def test_the_page_is_what_is_computed() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m varflow.cli_gain_page"


@pytest.mark.parametrize("c", list(compared()), ids=lambda c: f"{c.published.where}-{c.published.activation}")
def test_causes_say_what_the_errors_are(c: Compared) -> None:
    """Constants called right are, others are off; NFNet's by no more than their noise."""
    if c.field == "init_gain_centered":
        assert abs(c.error) < 2e-3
    elif c.published.cause.startswith("right"):
        assert abs(c.error) < 1e-3
    else:
        assert abs(c.error) > 1e-2


def test_constants_of_torch_are_those_of_torch() -> None:
    init = pytest.importorskip("torch").nn.init
    entries = [p for p in SECOND if "calculate_gain" in p.where]
    assert {p.activation for p in entries} == set(TORCH_GAINS)
    for p in entries:
        name, _, rest = p.activation.partition("(")
        slope = float(rest.rstrip(")")) if rest else None
        assert init.calculate_gain(name, slope) == pytest.approx(p.value, rel=1e-12)


def test_the_default_of_a_linear_layer_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.nn.Linear(400, 400).weight.detach()
    found = float(weight.pow(2).mean()) * 400
    default = next(p for p in SECOND if "Linear" in p.where)
    assert found == pytest.approx(default.value**2, rel=1e-2)


def test_variances_settle_where_the_page_says() -> None:
    """Three hundred layers of the map, from q = 1."""
    for c in (Compared(p, "init_gain") for p in SECOND):
        if c.maps is None or "settles" not in c.fate:
            continue
        q = 1.0
        for _ in range(300):
            q = float(c.maps.next_variance(q))
        assert f"settles at {q:.4g}" == c.fate, c.published


def test_every_copy_of_nfnet_is_noise() -> None:
    off = [abs(Compared(p, "init_gain_centered").error) for p in CENTERED]
    assert sum(e > RIGHT for e in off) > len(off) / 2
