"""The page docs/gains.md: published gains beside the true ones, every number computed.

``python -m varflow.cli_gain_page`` rewrites it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from varflow.cli_print import text_of
from varflow.cli_tables import markdown_table
from varflow.expressions import parse
from varflow.gain import gain
from varflow.maps import ActivationMaps, activation_maps

RIGHT = 5e-4
"""A published constant this close to the true one, relatively, is right as far as it is stated."""


@dataclass(frozen=True)
class Published:
    """A constant that people copy: where it stands, for which activation, and where it comes from."""

    where: str
    activation: str
    constant: str
    cause: str

    @property
    def value(self) -> float:
        """The constant as a float."""
        return float(parse(self.constant, {}))


TORCH, STYLEGAN = "`torch.nn.init.calculate_gain`", "StyleGAN2 `bias_act`"
HE = "He's gain, copied"
SECOND = (
    Published(TORCH, "relu", "sqrt(2)", "right: E f^2 = 1/2"),
    Published(TORCH, "leaky_relu(0.01)", "sqrt(2/(1 + 0.01^2))", "right"),
    Published(TORCH, "tanh", "5/3", "a heuristic; no moment of tanh has it"),
    Published(TORCH, "sigmoid", "1", "none computed: the constant of a linear layer stands in"),
    Published(TORCH, "selu", "3/4",
              "gives up unit variance for steadier gradients in rectangular layers, says its documentation"),
    Published("`torch.nn.Linear` default, a = sqrt(5)", "relu", "1/sqrt(3)",
              "a bound of 1/sqrt(fan_in) kept from an earlier library, later written as a leaky slope of sqrt(5)"),
    Published(STYLEGAN, "leaky_relu(0.2)", "sqrt(2)", "the gain of relu: E f^2 is 0.52, not 1/2"),
    Published(STYLEGAN, "swish", "sqrt(2)", "the gain of relu"),
    Published(STYLEGAN, "tanh", "1", "none computed"),
    Published(STYLEGAN, "sigmoid", "1", "none computed"),
    Published(STYLEGAN, "elu", "1", "none computed"),
    Published(STYLEGAN, "softplus", "1", "none computed"),
    Published(STYLEGAN, "selu", "1", "right: SELU is built for it"),
    Published("EDM2, 1/0.596", "silu", "1/0.596", "right to the three digits stated"),
    Published(HE, "gelu", "sqrt(2)", "the gain of relu"),
    Published(HE, "mish", "sqrt(2)", "the gain of relu"),
    Published(HE, "hardswish", "sqrt(2)", "the gain of relu"),
    Published(HE, "relu_squared", "sqrt(2)", "the gain of relu; no gain keeps a homogeneous function of degree two"),
    Published("a linear layer's gain, copied", "swiglu", "1", "the product of two inputs is not one of them"),
    Published("a linear layer's gain, copied", "glu", "1", "the product of two inputs is not one of them"),
    Published("LeCun et al. 1998", "lecun_tanh", "1",
              "f(1) = 1 was chosen, so that E f^2 was taken to be near 1; it is near 3/4"),
    Published("SIREN, U(-sqrt(6/n)/w, sqrt(6/n)/w)", "sin", "sqrt(2)",
              "E sin^2 = 1/2 holds for arguments of large variance; at variance 1 it is 0.43"),
)
_NFNET = "a sample of 1024 x 256 numbers was averaged once, and its digits were kept"
CENTERED = tuple(
    Published("NFNet", name, constant, _NFNET)
    for name, constant in (
        ("relu", "1.7139588594436646"), ("leaky_relu(0.01)", "1.70590341091156"), ("relu6", "1.7131484746932983"),
        ("elu", "1.2716004848480225"), ("celu", "1.270926833152771"), ("selu", "1.0008515119552612"),
        ("gelu", "1.7015043497085571"), ("silu", "1.7881293296813965"), ("softplus", "1.9203323125839233"),
        ("sigmoid", "4.803835391998291"), ("logsigmoid", "1.9193484783172607"), ("softsign", "2.338853120803833"),
        ("tanh", "1.5939117670059204"), ("glu", "1.8484294414520264"),
    )
)


@dataclass(frozen=True)
class Compared:
    """A published constant and the moment of its activation."""

    published: Published
    field: str

    @cached_property
    def true(self) -> float:
        """The gain that varflow computes."""
        value = gain(self.published.activation).numeric()[self.field]
        assert value is not None
        return value

    @property
    def error(self) -> float:
        """How far the constant is from it, relatively."""
        return self.published.value / self.true - 1

    @property
    def formula(self) -> str:
        """The gain's formula, where it is closed and short."""
        g = gain(self.published.activation)
        text = text_of(getattr(g, self.field)) if g.closed_form[self.field] else None
        return "integral" if text is None else f"`{text}`" if len(text) <= 40 else "closed form"

    @property
    def off(self) -> str:
        """The error in percent, with as many digits as it has."""
        return "right" if abs(self.error) < RIGHT else f"{100 * self.error:+.2g} %"

    @cached_property
    def maps(self) -> ActivationMaps | None:
        """The maps of a network that uses the constant; None for gates."""
        g = gain(self.published.activation)
        value = parse(self.published.constant, {})
        return activation_maps(g.activation, value**2) if hasattr(g, "maps") else None

    @property
    def fate(self) -> str:
        """Where the variance of a deep network with this gain goes, started at 1."""
        if self.maps is None:
            return "-"
        points = self.maps.fixed_points
        if points.every:
            return "stays"
        factor = float(self.maps.next_variance(1.0))
        if abs(factor - 1) < 1e-9:
            return "stays at 1"
        stable = [p.value for p in points.stable if (p.value > 1) == (factor > 1)]
        nearest = min(stable, key=lambda v: abs(v - 1), default=math.inf if factor > 1 else 0.0)
        if nearest in (0.0, math.inf):
            return f"{'grows' if factor > 1 else 'decays'}, first layer by {factor:.4g}"
        return f"settles at {nearest:.4g}"


def compared() -> Iterator[Compared]:
    """Every entry of the page."""
    yield from (Compared(p, "init_gain") for p in SECOND)
    yield from (Compared(p, "init_gain_centered") for p in CENTERED)


def _row(c: Compared, fate: bool) -> list[str | float]:
    p = c.published
    shown = p.constant if not p.constant.replace(".", "").isdecimal() or len(p.constant) < 6 else f"{p.value:.8g}"
    off = c.off if fate else f"{100 * c.error:+.3f} %"
    row: list[str | float] = [f"`{p.activation}`", f"`{shown}`", f"{c.true:.7g}", c.formula, off]
    return [p.where, *row, c.fate, p.cause] if fate else row


def page() -> str:
    """The text of docs/gains.md."""
    every = list(compared())
    second, centered = every[: len(SECOND)], every[len(SECOND):]
    worst = max(centered, key=lambda c: abs(c.error))
    relu = next(c for c in centered if c.published.activation == "relu")
    columns = ("where", "activation", "published", "true", "formula", "error", "variance of a deep network", "cause")
    first = markdown_table(columns, [_row(c, True) for c in second])
    other = markdown_table(columns[1:6], [_row(c, False) for c in centered])
    return (
        "# Gains people copy\n\nWritten by `python -m varflow.cli_gain_page`; every true value is computed there. "
        "`varflow gain NAME` prints the moments of one activation, `varflow gain NAME --maps` where variance and "
        "correlation go.\n\n"
        "## Gains that are to keep the second moment\n\n"
        "A layer keeps E x^2 = 1 with weights of standard deviation gain/sqrt(fan_in), gain = 1/sqrt(E f(z)^2), "
        "z ~ N(0, 1). The last but one column follows a deep network (no biases) that uses the published constant: "
        "where q -> gain^2 E f(sqrt(q) z)^2 takes the variance q of the pre-activations from q = 1.\n\n"
        f"{first}\n\n"
        "A wrong constant does not always show: an activation that saturates has a stable variance for many gains, "
        "only not the one that was meant. One that grows linearly has none, and the error is raised to the power of "
        "the depth.\n\n"
        "## Gains that are to keep the variance\n\n"
        "Networks without normalization whose weights are standardized scale an activation to unit variance, by "
        "1/sqrt(Var f(z)). The constants of NFNet are those of Brock, De and Smith (2021), as found in many copies: "
        f"{_NFNET}. The one of relu is {100 * relu.error:.2f} % above sqrt(2/(1 - 1/pi)), the worst, "
        f"`{worst.published.activation}`, {100 * worst.error:+.2f} %.\n\n"
        f"{other}\n"
    )


def write(root: Path) -> None:
    """Rewrite the page of a source tree."""
    (root / "docs" / "gains.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent)
