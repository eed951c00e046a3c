"""Small networks that together use every primitive and every kind of weight, for the tests of the CUDA backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varflow.network import Network

HE: dict[str, Any] = {"variance": "2/fan_in"}
ONE: dict[str, Any] = {"variance": "1/fan_in"}


@dataclass(frozen=True)
class Case:
    """A network, how its weights are drawn, and the inputs of a draw (None: as batch norms ask)."""

    build: Callable[[], Network]
    method: str = "sampled"
    samples: int | None = 3


def mlp() -> Network:
    """Biases, a residual sum, widths on both sides of a tile."""
    net = Network("mlp")
    x = net.input("x", 20, mean="1/4", second_moment=2)
    h = net.relu(net.linear(x, 24, name="fc1", bias="1/10", **HE))
    g = net.linear(net.activation(h, "gelu"), 24, name="fc2", **HE)
    y = net.add(h, g, weights=("1/2", "2"), name="sum")
    net.linear(y, 70, name="fc3", **ONE)
    return net


def wide() -> Network:
    """Rows that are whole tiles of random words, several pieces of depth, several tiles of places."""
    net = Network("wide")
    x = net.input("x", 128, (5,))
    net.linear(net.relu(net.linear(x, 9, name="fc1", **HE)), 7, name="fc2", **ONE)
    return net


def entries() -> Network:
    """Every distribution of entries, sparse and normalized weights, orthogonal ones of three shapes."""
    net = Network("entries")
    x = net.input("x", 12)
    for k, distribution in enumerate(("uniform", "truncated_normal", "rademacher")):
        x = net.linear(x, 12, name=f"fc{k}", distribution=distribution, **ONE)
    x = net.linear(x, 10, name="constant", distribution="constant", value="1/5")
    x = net.linear(x, 12, name="sparse", keep="1/3", variance="3/fan_in")
    for name, size in (("square", 12), ("tall", 15), ("thin", 9)):
        x = net.linear(x, size, name=name, distribution="orthogonal", **ONE)
    for k, distribution in enumerate(("standardized", "weight_norm")):
        x = net.linear(x, 10, name=f"law{k}", distribution=distribution, **ONE)
    net.linear(x, 8, name="last", distribution="spectral", value=2)
    return net


def shared() -> Network:
    """One matrix three times forward, transposed after use, and with a window of one tap."""
    net = Network("shared")
    x = net.input("x", 16, (3,))
    h = net.relu(net.linear(x, 16, name="a", weight="W", **HE))
    h = net.relu(net.linear(h, 16, name="b", weight="W", **HE))
    h = net.linear(h, 16, name="c", weight="W", transpose=True, **HE)
    net.linear(net.add(h, x), 12, name="d", **ONE)
    return net


def convolutions() -> Network:
    """Strides, borders of all kinds, groups broad and narrow, depthwise, transposed."""
    net = Network("convolutions")
    x = net.input("x", 4, (6, 5), position_correlation="1/3")
    h = net.relu(net.apply("conv", x, name="c1", out_channels=8, kernel=3, padding=1, stride=2, bias="1/10", **HE))
    h = net.apply("conv", h, name="c2", out_channels=8, kernel=3, padding=1, padding_mode="reflect", groups=2, **HE)
    h = net.relu(net.apply("depthwise_conv", h, name="c3", kernel=3, padding=1, padding_mode="circular", **HE))
    h = net.apply("conv", h, name="c4", out_channels=6, kernel=2, **ONE)
    net.apply("conv_transpose", h, name="c5", out_channels=5, kernel=3, stride=2, **ONE)
    return net


def grouped() -> Network:
    """Groups of sixteen channels, a tile in each; sparse and normalized taps, in narrow groups too."""
    net = Network("grouped")
    x = net.input("x", 32, (3,))
    h = net.apply("conv", x, name="c1", out_channels=32, kernel=2, groups=2, keep="1/2", **ONE)
    h = net.apply("conv", h, name="c2", out_channels=8, kernel=2, padding=1, distribution="standardized", **ONE)
    net.apply("depthwise_conv", h, name="c3", kernel=2, distribution="weight_norm", **ONE)
    return net


def pools() -> Network:
    """Maxima and means over overlapping windows, resampling, dealing, means over all positions."""
    net = Network("pools")
    x = net.linear(net.input("x", 8, (6, 6)), 8, name="fc", **ONE)
    h = net.apply("max_pool", x, name="max", kernel=3, stride=2, padding=1)
    g = net.apply("avg_pool", x, name="avg", kernel=3, stride=2, padding=1)
    h = net.add(h, g, name="sum")
    h = net.apply("upsample", h, name="up", scale=2, mode="bilinear")
    h = net.apply("pixel_unshuffle", h, name="deal", downscale_factor=2)
    h = net.apply("pixel_shuffle", h, name="back", upscale_factor=2)
    h = net.apply("max_pool", net.apply("pad", h, name="pad", before=1, after=1, padding_mode="replicate"), kernel=2)
    net.linear(net.apply("mean_pool", h, name="mean"), 6, name="head", **ONE)
    return net


def norms() -> Network:
    """Statistics over channels, groups, single channels of a sample; masks of both kinds."""
    net = Network("norms")
    x = net.input("x", 12, (2, 3), position_correlation="1/2", sample_correlation="1/4", mean="1/2")
    x = net.linear(x, 12, name="fc", **ONE)
    h = net.layer_norm(x, gamma="3/2", beta="1/2", name="ln")
    h = net.apply("drop_path", net.relu(h), p="1/2", name="path")
    h = net.add(h, net.apply("group_norm", x, groups=3, eps="1/10", name="gn"))
    h = net.rms_norm(net.dropout(h, "1/4", name="drop"), name="rms")
    h = net.add(h, net.apply("instance_norm", x, eps="1/10", name="in"))
    net.linear(net.flatten(h), 5, name="head", **ONE)
    return net


def batch_norms() -> Network:
    """Statistics over the samples of a batch."""
    net = Network("batch_norms")
    h = net.batch_norm(net.linear(net.input("x", 10, (2,)), 10, name="fc", **ONE), batch=5, eps="1/10", name="bn")
    net.linear(net.relu(h), 8, name="head", **ONE)
    return net


def layouts() -> Network:
    """Blocks of channels, permutations, gates, many summands, every function of the register machine."""
    net = Network("layouts")
    x = net.linear(net.input("x", 12, (2,)), 12, name="fc", **ONE)
    a, b, c = net.split(x, 4, 6, 2)
    y = net.concat(c, net.activation(a, "log(1+exp(x))*sin(x)"), net.activation(b, "atan(x)+asinh(x)+erf(x)"))
    y = net.add(y, net.permute(x, permutation="P", name="p"))
    parts = [net.activation(x, f"{name}(x)") for name in ("tanh", "cos", "erfc", "exp", "abs")]
    y = net.add(y, *parts, net.activation(x, "abs(x)**(3/4)"), net.activation(x, "log(1+x**2)"), name="many")
    y = net.apply("glu", net.multiply(y, x), name="glu")
    net.linear(net.apply("maxout", y, k=3, name="maxout"), 4, name="head", **ONE)
    return net


CASES: dict[str, Case] = {
    "mlp": Case(mlp),
    "mlp-collapsed": Case(mlp, "collapsed"),
    "one-sample": Case(mlp, "collapsed", 1),
    "wide": Case(wide, samples=4),
    "entries": Case(entries),
    "shared": Case(shared),
    "shared-collapsed": Case(shared, "collapsed", 1),
    "convolutions": Case(convolutions, samples=2),
    "convolutions-collapsed": Case(convolutions, "collapsed", 1),
    "grouped": Case(grouped, samples=2),
    "pools": Case(pools, samples=2),
    "norms": Case(norms),
    "batch-norms": Case(batch_norms, samples=None),
    "layouts": Case(layouts, "auto"),
}
