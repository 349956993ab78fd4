"""Refitted slow functions in the order, with the signs and, where equally slow, in the combination of the old ones."""

import numpy as np
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import align, fit_linear

DISTINCT = np.array([0.95, 0.8, 0.6, 0.3])


def white(frames, n, seed=0, weights=None):
    """Functions (F, n) of mean 0 and unit covariance over the frames, to rounding."""
    x = np.random.default_rng(seed).normal(size=(frames, n))
    w = np.full(frames, 1 / frames) if weights is None else weights / weights.sum()
    x = x - w @ x
    values, vectors = np.linalg.eigh((w[:, None] * x).T @ x)
    return x @ vectors / np.sqrt(values)


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (3, 0, 1, 2), (3, 2, 1, 0)])
def test_order_and_signs_are_those_of_the_old_functions(order):
    old, signs = white(500, 4), np.array([1.0, -1.0, -1.0, 1.0])
    new = (old * signs)[:, order] + 5.0  # a constant is no difference
    found = align(new, old, DISTINCT)
    expected = np.zeros((4, 4))
    expected[np.arange(4), order] = signs[list(order)]
    np.testing.assert_array_equal(found.rotation, expected)
    np.testing.assert_allclose((new - new.mean(0)) @ found.rotation, old, atol=1e-10)
    np.testing.assert_allclose(found.singular_values, DISTINCT[np.argsort(order)])
    np.testing.assert_allclose(found.correlations, 1.0)
    assert found.overlap == pytest.approx(1.0)
    moved = [f"cv.{j + 1} was component {order.index(j) + 1} of the refit" for j in range(4) if order[j] != j]
    assert found.notes == moved


def test_only_functions_that_are_equally_slow_are_rotated():
    old, new = white(500, 4), white(500, 4)
    new[:, 1:3] = new[:, 1:3] @ turn(0.6)
    alike = align(new, old, [0.95, 0.805, 0.800, 0.3])
    np.testing.assert_allclose(new @ alike.rotation, old, atol=1e-10)
    np.testing.assert_allclose(alike.rotation @ alike.rotation.T, np.eye(4), atol=1e-12)
    assert [note.split(" is a ")[0] for note in alike.notes] == ["cv.2", "cv.3"]
    apart = align(new, old, DISTINCT)
    np.testing.assert_array_equal(apart.rotation, np.eye(4))
    np.testing.assert_allclose(apart.correlations, [1, np.cos(0.6), np.cos(0.6), 1])
    assert alike.overlap == pytest.approx(1.0) and apart.overlap == pytest.approx(1.0)  # the spans are the same


def test_errors_say_what_is_equally_slow():
    old = white(500, 2)
    new = old @ turn(0.6)
    assert np.abs(align(new, old, [0.9, 0.8], errors=[0.02, 0.03]).rotation).max() == 1.0
    found = align(new, old, [0.9, 0.8], errors=[0.02, 0.12])
    np.testing.assert_allclose(new @ found.rotation, old, atol=1e-10)
    # what is left of the singular values: autocorrelations of the combinations, with the same sum
    assert found.singular_values.sum() == pytest.approx(1.7)
    c, s = np.cos(0.6) ** 2, np.sin(0.6) ** 2
    np.testing.assert_allclose(found.singular_values, [0.9 * c + 0.8 * s, 0.9 * s + 0.8 * c])


def test_overlap_is_the_share_of_the_old_functions_that_is_left():
    x = white(800, 6)
    old = x[:, :2]
    assert align(x[:, 2:4], old, [0.9, 0.8]).overlap == pytest.approx(0.0, abs=1e-12)
    assert align(x[:, 1:3], old, [0.9, 0.8]).overlap == pytest.approx(0.5)
    assert align(x[:, :1], old, [0.9]).overlap == pytest.approx(0.5)
    assert align(x[:, [3, 1, 0]], old, [0.9, 0.8, 0.7]).overlap == pytest.approx(1.0)
    tilted = np.column_stack([x[:, 0], np.cos(0.3) * x[:, 1] + np.sin(0.3) * x[:, 2]])
    assert align(tilted, old, [0.9, 0.8]).overlap == pytest.approx((1 + np.cos(0.3) ** 2) / 2)
    mixed = np.random.default_rng(5).normal(size=(2, 2))  # a span has no basis
    assert align(tilted @ mixed, old @ mixed.T, [0.9, 0.8]).overlap == pytest.approx((1 + np.cos(0.3) ** 2) / 2)


def test_a_component_more_and_a_component_less():
    x = white(500, 3)
    more = align(x[:, [2, 1, 0]], x[:, :2], [0.9, 0.8, 0.7])
    np.testing.assert_allclose(x[:, [2, 1, 0]] @ more.rotation, x, atol=1e-12)
    assert np.isnan(more.correlations[2]) and "cv.3 has no counterpart among the old components" in more.notes
    less = align(-x[:, [2, 1]], x, [0.9, 0.8])
    assert less.partners.tolist() == [1, 2]
    np.testing.assert_allclose(-x[:, [2, 1]] @ less.rotation, x[:, 1:], atol=1e-12)
    assert less.notes[0] == "cv.1 follows component 2 of the old functions, of which there were more"
    block = align(x @ np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0], x[:, :2], [0.9, 0.9, 0.9])
    np.testing.assert_allclose(block.correlations[:2], 1.0)


def test_another_function_is_named():
    x = white(500, 2)
    found = align(x[:, 1:], x[:, :1], [0.9])
    assert "cv.1 is another function than before: its correlation with the old one is 0.00" in found.notes[0].replace(
        "-", ""
    )
    assert found.overlap < 1e-12


def test_weights_are_replicated_frames():
    rng = np.random.default_rng(3)
    old, counts = rng.normal(size=(200, 2)), rng.integers(0, 4, 200)
    new = old @ turn(0.4) + 0.2 * rng.normal(size=(200, 2))
    one = align(new, old, [0.9, 0.9], weights=counts)
    other = align(np.repeat(new, counts, 0), np.repeat(old, counts, 0), [0.9, 0.9])
    np.testing.assert_allclose(one.rotation, other.rotation, atol=1e-12)
    np.testing.assert_allclose([one.overlap, *one.correlations], [other.overlap, *other.correlations], atol=1e-12)


ERROR = 0.05  # the two singular values of ring() differ by up to 0.04 in a run of this length, though they are equal


def ring(seed, frames=20_000):
    """A particle that jumps between three equivalent states: two slow functions that are exactly equally slow; (T, 3)."""
    rng = np.random.default_rng(seed)
    jumps = rng.choice([0, 1, 2], p=[0.96, 0.02, 0.02], size=frames)
    return np.eye(3)[np.cumsum(jumps) % 3] + 0.05 * rng.normal(size=(frames, 3))


def test_refits_of_a_degenerate_process_agree_after_alignment():
    """Each fit picks its own basis of the slow space; aligned, they are the same functions."""
    reference = ring(99, 3000)
    first = fit_linear(ring(0), 5, 2)
    before, after = [], []
    for seed in range(1, 6):
        refit = fit_linear(ring(seed), 5, 2)
        found = align(refit.transform(reference), first.transform(reference), refit.singular_values, errors=ERROR)
        aligned = found.rotate(refit)
        for model, kept in ((refit, before), (aligned, after)):
            pairs = zip(model.transform(reference).T, first.transform(reference).T, strict=True)
            kept.append(min(np.corrcoef(a, b)[0, 1] for a, b in pairs))
        assert found.overlap > 0.999
        np.testing.assert_allclose(aligned.singular_values.sum(), refit.singular_values.sum())
    assert min(after) > 0.995 > 0.9 > min(before)


def test_an_aligned_vamp_model_keeps_its_score():
    x = ring(4)
    model = fit_linear(x, 5, 2, reversible=False)
    old = model.transform(x)[:, ::-1] * [1, -1]
    aligned = align(model.transform(x), old, model.singular_values, errors=0.0).rotate(model)
    np.testing.assert_allclose(aligned.transform(x), old, atol=1e-10)
    np.testing.assert_allclose(aligned.right_projection, model.right_projection[:, ::-1] * [1, -1])
    np.testing.assert_allclose(aligned.singular_values, model.singular_values[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"psi_new": np.zeros((5, 2, 1))}, "at the same frames"),
        ({"psi_new": np.ones((9, 2))}, "at the same frames"),
        ({"psi_old": np.full((10, 2), np.nan)}, "old functions are not finite"),
        ({"psi_old": np.ones((10, 2))}, "Component 1 of the old functions does not vary"),
        ({"singular_values": [0.9]}, "2 new functions"),
        ({"errors": [0.1, -0.1]}, "not negative"),
        ({"errors": [0.1, 0.1, 0.1]}, "one or 2"),
        ({"weights": -np.ones(10)}, "not negative"),
        ({"weights": np.ones(9)}, "10 finite"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    given = {"psi_new": white(10, 2), "psi_old": white(10, 2, 1), "singular_values": [0.9, 0.8]}
    with pytest.raises(GeomGNNError, match=message):
        align(**given | change)
