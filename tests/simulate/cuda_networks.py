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


def uneven() -> Network:
    """Means and maxima over windows of different sizes, coarser and finer; last windows that are not full."""
    net = Network("uneven")
    x = net.linear(net.input("x", 8, (7, 5)), 8, name="fc", **ONE)
    h = net.apply("adaptive_avg_pool", x, name="mean", output_size=(3, 4))
    g = net.apply("adaptive_max_pool", x, name="max", output_size=(3, 4))
    h = net.apply("adaptive_max_pool", net.add(h, g, name="sum"), name="fine", output_size=(5, 6))
    h = net.apply("avg_pool", h, name="ceil", kernel=3, stride=2, padding=1, ceil_mode=True)
    h = net.apply("max_pool", h, name="last", kernel=2, ceil_mode=True)
    net.linear(net.flatten(h), 6, name="head", **ONE)
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


def transformer(
    causal: bool = False, query: str = "query", channels: int = 6, tokens: int = 5, **embedded: Any
) -> Network:
    """A pre-norm block of two heads: biases, dropped weights, an MLP; ``query`` names the weight of queries."""
    net = Network("transformer")
    x = net.input("x", channels, (tokens,), **embedded)
    h = net.layer_norm(x, eps="1/10", name="norm1")
    q = net.linear(h, channels, name="q", weight=query, bias="1/10", **ONE)
    k, v = net.linear(h, channels, name="k", weight="key", **ONE), net.linear(h, channels, name="v", **ONE)
    logits = net.scores(q, k, heads=2, scale="2/sqrt(d_k)", name="logits")
    a = net.dropout(net.softmax(logits, heads=2, causal=causal, name="weights"), "1/4", name="dropped")
    y = net.blend(a, v, heads=2, name="mixed")
    x = net.add(x, net.linear(y, channels, name="out", **ONE), name="middle")
    h = net.activation(net.linear(net.rms_norm(x, eps="1/10"), channels + 3, name="fc1", **HE), "gelu")
    net.add(x, net.linear(h, channels, name="fc2", **ONE), name="stream")
    return net


def alike() -> Network:
    """A transformer of tokens that resemble each other."""
    return transformer(position_correlation="1/3")


def apart() -> Network:
    """Few tokens of many channels: what collapsed products make of tokens nearly dependent hangs on the last bit."""
    return transformer(channels=20, tokens=3)


def causal_tied() -> Network:
    """Each token sees itself and those before it; queries and keys by one weight."""
    return transformer(True, "key")


def causal_apart() -> Network:
    """A causal mask; see `apart`."""
    return transformer(True, channels=20, tokens=3)


def self_attention() -> Network:
    """The layer with its four weights, causal, over an image of tokens, and attention to other tokens."""
    net = Network("self-attention")
    x, other = net.input("x", 8, (2, 2)), net.input("other", 8, (7,))
    h = net.self_attention(
        x, heads=4, causal=True, key_channels=4, value_channels=12, bias="1/10", query_variance=1, key_variance=1,
        value_variance="1/fan_in", output_variance="1/fan_in", name="own",
    )  # fmt: skip
    h = net.flatten(net.add(x, h, name="sum"))
    q = net.reshape(h, channels=8, positions=(4,))
    net.attention(q, other, net.linear(other, 6, name="v", **ONE), heads=2, name="cross")
    return net


def long_attention() -> Network:
    """Several tiles of tokens on a GPU, pieces of depth, and rows that many threads share; no weights."""
    net = Network("long attention")
    q, k, v = net.split(net.input("x", 39, (68,), position_correlation="1/2"), 3, 3, 33)
    net.attention(q, k, v, scale="2", name="y")
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
    "uneven": Case(uneven, samples=2),
    "norms": Case(norms),
    "batch-norms": Case(batch_norms, samples=None),
    "layouts": Case(layouts, "auto"),
    "transformer": Case(alike, samples=2),
    "transformer-collapsed": Case(apart, "collapsed", 1),
    "causal-tied": Case(causal_tied, samples=1),
    "causal-collapsed": Case(causal_apart, "collapsed", 1),
    "self-attention": Case(self_attention, samples=2),
    "long-attention": Case(long_attention, samples=1),
}
