"""Crops of large grids: what is looked up where, and numbers with crops against numbers with every place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import varflow as vf
from varflow.laws import crops, field, positions
from varflow.laws.crops import Crops, _axis, _pairs, shares, single
from varflow.lowering import lower

SIZES = st.tuples(st.integers(50, 200), st.integers(3, 12)).map(lambda p: (p[0], p[0] - 4 * ((p[0] - 4 * p[1]) // 4)))


def wall(n: int) -> np.ndarray:
    """What padding makes of the places next to a border."""
    i = np.arange(n)
    return np.asarray(1 - 0.5 * np.exp(-np.minimum(i, n - 1 - i)))


def image(n: int) -> np.ndarray:
    """A covariance that falls off within some places, has borders, changes slowly over the image, and has tiles of four
    and something far places have in common."""
    i = np.arange(n)
    slow = wall(n) * np.sin(np.pi * (i + 1) / (n + 1))
    near = np.exp(-abs(i[:, None] - i) / 1.5) + 0.2 * (i[:, None] // 4 == i // 4)
    return np.asarray(near * np.sqrt(slow[:, None] * slow) + 0.1 * wall(n)[:, None] * wall(n))


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_places_are_looked_up_at_the_same_distance(sizes: tuple[int, int]) -> None:
    size, crop = sizes
    for have, want in ((size, crop), (crop, size)):
        matrix = _axis(size, have, want).tocoo()
        first, second = np.divmod(matrix.row, want)
        there, beyond = np.divmod(matrix.col, have)
        near = abs(second - first) <= 2 * crop // 5
        assert ((beyond - there)[near] == (second - first)[near]).all()
        assert (np.sign(beyond - there) == np.sign(second - first)).all()
        assert np.allclose(_axis(size, have, want).sum(axis=1), 1)
        kept = crop // 8
        low = (np.maximum(first, second) <= kept) & near
        assert (there[low] == first[low]).all() and (beyond[low] == second[low]).all()


@pytest.mark.parametrize(("size", "crop"), [(56, 40), (112, 48), (80, 40), (150, 46)])
def test_a_crop_gives_the_image_back(size: int, crop: int) -> None:
    full = image(size)
    small = _pairs(full, (size,), (size,), (crop,))
    back = _pairs(small, (size,), (crop,), (size,))
    assert np.diag(back) == pytest.approx(np.diag(full), rel=0.02)
    for apart in (0, 1, 2, 5):
        assert np.diagonal(back, apart).mean() == pytest.approx(np.diagonal(full, apart).mean(), rel=2e-3)
    assert back.mean() == pytest.approx(full.mean(), rel=2e-3)
    averaged = crops._averaged(small, (size,), (crop,))
    assert averaged == pytest.approx(single((size,), (size,), (crop,)) @ full.mean(axis=1, keepdims=True), rel=0.03)
    assert shares((size,), (crop,)) @ wall(crop) == pytest.approx(wall(size).mean(), rel=0.003)


def test_pairs_of_two_axes_are_products() -> None:
    one, two = image(44), image(36)
    small = [_pairs(m, (n,), (n,), (c,)) for m, n, c in ((one, 44, 24), (two, 36, 20))]
    assert _pairs(np.kron(one, two), (44, 36), (44, 36), (24, 20)) == pytest.approx(np.kron(*small), abs=1e-12)


def test_crops_are_told_apart_by_their_numbers_of_places() -> None:
    net = vf.Network("t")
    h = net.input("x", channels=3, positions=(224, 224))
    for k in range(5):
        h = net.conv(h, 8, 3, stride=2, padding=1, name=f"c{k}")
    found = Crops(lower(net))
    assert set(found._crop) == {(224, 224), (112, 112), (56, 56)}
    places = [math.prod(c) for c in found._crop.values()]
    assert len(set(places)) == 3 and not set(places) & {28 * 28, 14 * 14, 49}
    assert all(crops.PLACES <= p <= positions.MAX_PLACES for p in places)
    assert all((g - c) % 4 == 0 for grid, crop in found._crop.items() for g, c in zip(grid, crop, strict=True))


def numbers(net: vf.Network, most: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, float]]:
    """Numbers where grids of more than so many places have crops."""
    for module in (crops, field):
        monkeypatch.setattr(module, "MAX_PLACES", most)
    monkeypatch.setattr(crops, "PLACES", min(1600, most))
    monkeypatch.setattr(positions, "MAX_PLACES", 10**6)
    monkeypatch.setattr(positions.too_many, "__defaults__", (10**6,))
    d = vf.derive(net)
    return d.numeric(dict.fromkeys(d.free_symbols(), 2.0))


def pooled(size: int) -> vf.Network:
    """Every place mixed with its neighbours, and a mean over all."""
    net = vf.Network("pooled")
    h = net.conv(net.input("x", channels=16, positions=(size, size)), 32, 5, padding=2, name="first")
    h = net.max_pool(net.relu(h, name="bent"), 3, stride=2, padding=1, name="pool")
    h = net.relu(net.conv(h, 32, 3, padding=1, name="second"), name="again")
    net.linear(net.mean_pool(h, name="mean"), 10, name="last")
    return net


def tiled(size: int) -> vf.Network:
    """Checkerboards of transposed convolutions, smoothed and averaged over tiles."""
    net = vf.Network("tiled")
    h = net.relu(net.conv(net.input("x", channels=16, positions=(size, size)), 32, 3, padding=1, name="first"))
    h = net.conv_transpose(h, 32, 3, stride=2, padding=1, output_padding=1, name="up")
    h = net.avg_pool(net.conv(net.relu(h, name="bent"), 16, 3, padding=1, name="second"), 2, name="tiles")
    net.mean_pool(net.relu(h), name="mean")
    return net


def normalized(size: int) -> vf.Network:
    """Batch norms, one behind a max pool, with concatenation; gradients that neighbours share."""
    net = vf.Network("normalized")
    h = net.conv(net.input("x", channels=16, positions=(size, size)), 32, 3, padding=1, name="first")
    h = net.max_pool(net.relu(net.batch_norm(h, name="norm")), 2, name="pool")
    h = net.concat(h, net.conv(net.relu(net.batch_norm(h)), 16, 3, padding=1, name="grown"), name="both")
    h = net.avg_pool(net.conv(h, 16, 1, name="narrow"), 2, name="tiles")
    net.mean_pool(net.relu(net.batch_norm(h, name="end")), name="mean")
    return net


@pytest.mark.parametrize(("build", "size"), [
    (pooled, 64), pytest.param(tiled, 28, marks=pytest.mark.slow), (normalized, 72)])
def test_numbers_with_crops_are_those_with_every_place(build, size, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    exact, cropped = (numbers(build(size), most, monkeypatch) for most in (10**6, 1200))
    for node, found in exact.items():
        for moment in ("second_moment", "grad_second_moment"):
            assert cropped[node][moment] == pytest.approx(found[moment], rel=0.01), (node, moment)


def test_long_sequences_have_crops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = vf.Network("sequence")
    h = net.relu(net.conv(net.input("x", channels=16, positions=(900,)), 32, 5, padding=2, name="first"))
    h = net.relu(net.conv(net.max_pool(h, 2, name="pool"), 32, 3, padding=1, name="second"))
    net.mean_pool(h, name="mean")
    exact, cropped = (numbers(net, most, monkeypatch) for most in (10**6, 300))
    for node, found in exact.items():
        assert cropped[node]["second_moment"] == pytest.approx(found["second_moment"], rel=2e-3), node
        assert cropped[node]["grad_second_moment"] == pytest.approx(found["grad_second_moment"], rel=2e-3), node
