"""Networks and a stand-in verification for the tests of the exporters."""

from __future__ import annotations

from dataclasses import dataclass, field

from varflow.derive import Derivation
from varflow.network import Network

HOSTILE = ("\\input{/etc/passwd}", "<script>alert(1)</script>", "$x_{", "日本語 é|`*", "a%b#c&d~e^f\"g'h\n\ti",
           "long_name " * 30)


def residual() -> Network:
    net = Network("residual block", source="He et al. 2016, arXiv:1512.03385")
    x = net.input("x", channels="n")
    h = net.relu(net.linear(x, "n", name="fc1"), name="h")
    net.add(x, net.linear(h, "n", name="fc2"), name="y")
    return net


def chain(depth: int) -> Network:
    net = Network("chain")
    x = net.input("x", channels="n")
    for i in range(1, depth + 1):
        x = net.relu(net.linear(x, "n", name=f"fc{i}"), name=f"h{i}")
    return net


def prenorm(depth: int) -> Network:
    net = Network("pre-norm")
    x = net.input("x", channels="n")
    for i in range(depth):
        a = net.linear(net.layer_norm(x, name=f"ln{i}"), "4*n", name=f"up{i}")
        x = net.add(x, net.linear(net.gelu(a, name=f"act{i}"), "n", name=f"down{i}"), name=f"x{i}")
    return net


def mixer() -> Network:
    net = Network("gated mixer")
    x = net.input("x", channels="n", positions=16, position_correlation="1/2")
    a = net.dropout(net.gelu(net.linear(x, "4*n", name="up"), name="act"), "1/10", name="drop")
    left, right = net.split(net.linear(a, "2*n", name="proj"), "n", name="glu")
    gate = net.multiply(left, net.sigmoid(right, name="sig"), name="gate")
    net.linear(net.mean_pool(gate, name="pool"), 10, name="head", variance="1/fan_in")
    return net


def tied() -> Network:
    net = Network("tied autoencoder")
    h = net.tanh(net.linear(net.input("x", channels="n"), "n", name="enc"), name="t")
    net.linear(h, "n", weight="enc", transpose=True, name="dec")
    return net


def blocks(count: int) -> Network:
    body = Network("body")
    x = body.input("x", channels="n")
    h = body.relu(body.linear(x, "n", name="fc1"), name="h")
    body.add(x, body.linear(h, "n", name="fc2"), name="y")
    net = Network("blocks")
    net.linear(net.block(body, net.input("x", channels="n"), repeat=count, name="blk"), 10, name="head")
    return net


def hostile() -> Network:
    net = Network("\\input{/etc/passwd} & <script>alert(1)</script> $x_{")
    x = net.input(HOSTILE[0], channels="n")
    x = net.relu(net.linear(x, "n", name=HOSTILE[1]), name=HOSTILE[2])
    for name in HOSTILE[3:]:
        x = net.linear(x, "n", name=name)
    return net


@dataclass(frozen=True)
class FakeCheck:
    predicted: float
    estimate: float
    ci: tuple[float, float]
    verdict: str = "pass"
    exactness: str = "exact"
    draws: int = 2000
    note: str = ""
    draws_needed: int | None = None


@dataclass(frozen=True)
class FakeVerification:
    nodes: dict[str, dict[str, FakeCheck]]
    verdict: str = "pass"
    delta: float = 0.02
    power: float = 0.9999
    confidence: float = 0.99
    draws: int = 2000
    seed: int = 0
    widths: tuple[int, ...] = field(default=(128, 256, 512))


def verified(derivation: Derivation, values: dict[str, float]) -> FakeVerification:
    """A verification that agrees with the formulas to a part in a thousand."""
    nodes = {}
    for name, row in derivation.numeric(values).items():
        pair = {"forward": row["second_moment"], "backward": row["grad_second_moment"]}
        nodes[name] = {k: FakeCheck(v, v * 1.001, (v * 0.995, v * 1.006)) for k, v in pair.items()}
    return FakeVerification(nodes)
