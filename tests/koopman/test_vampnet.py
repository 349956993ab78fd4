"""The VAMP-2 loss and the training of VAMPnets and SRVs."""

import json

import numpy as np
import pytest
import torch
from deeptime.data import prinz_potential
from lobes import as_tokens, lobe, sqrt_data
from torch import nn

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    covariances,
    cross_validate,
    fit_linear,
    held_out_score,
    hold_out,
    skewness,
    train_vampnet,
    vamp,
    vamp2,
    vamp_score,
)
from openmm_geomgnn.koopman.loss import whitened_probe


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(tokens, **settings):
    """A short training on 2-d data."""
    return train_vampnet(
        lobe(), tokens, **{"lagtime": 1, "n_components": 1, "epochs": 3, "batch_size": 400, "lr": 3e-3, **settings}
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reversible", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_numpy_score(reversible, weighted):
    x = np.cumsum(random(300, 4).numpy(), axis=0) @ random(4, 4, seed=1).numpy()
    weights = np.random.default_rng(0).uniform(0.1, 3, 300) if weighted else None
    expected = vamp_score(vamp(covariances(x, 5, weights, reversible), epsilon=1e-14))
    t = torch.as_tensor(x)
    w = torch.as_tensor(weights[:-5]) if weighted else None
    assert vamp2(t[:-5], t[5:], w, reversible, ridge=1e-13).item() == pytest.approx(expected, abs=1e-7)


def test_loss_gradient_is_its_derivative():
    chi_0, chi_t = random(12, 3).requires_grad_(), random(12, 3, seed=1).requires_grad_()
    for reversible in (True, False):
        assert torch.autograd.gradcheck(lambda a, b, rev=reversible: vamp2(a, b, None, rev, 1e-6), (chi_0, chi_t))


@pytest.mark.parametrize("reversible", [False, True])
def test_gradients_are_finite_at_degenerate_singular_values(reversible):
    """Two equal processes, and two that are the same function: eigenvector gradients would be NaN."""
    x = random(64, 2)
    cases = {"equal": (x, x.clone()), "zero": (x, torch.roll(x, 32, 0)), "same": (x[:, [0, 0]], x[:, [0, 0]])}
    for name, (chi_0, chi_t) in cases.items():
        chi_0, chi_t = chi_0.clone().requires_grad_(), chi_t.clone().requires_grad_()
        vamp2(chi_0, chi_t, None, reversible).backward()
        assert torch.isfinite(chi_0.grad).all() and torch.isfinite(chi_t.grad).all(), name
    assert vamp2(x, x, None, reversible).item() == pytest.approx(3, abs=1e-4)


def test_loss_does_not_depend_on_the_basis_or_scale_of_the_outputs():
    x = torch.cumsum(random(200, 3), 0)
    transformed = 1e-4 * x @ random(3, 3, seed=4) + 7
    assert vamp2(transformed[:-2], transformed[2:], ridge=1e-12).item() == pytest.approx(
        vamp2(x[:-2], x[2:], ridge=1e-12).item(), abs=1e-6
    )


def test_constant_or_broken_outputs_are_an_error():
    for bad in (torch.ones(20, 2), torch.full((20, 2), torch.nan)):
        with pytest.raises(GeomGNNError, match="not finite and positive"):
            vamp2(bad, bad)


def test_probe_has_the_inverse_covariance():
    chi = random(40_000, 2) @ torch.tensor([[2.0, 0.3], [0.0, 0.5]], dtype=torch.float64)
    probe = whitened_probe(chi, None, 1e-12, torch.Generator().manual_seed(0))
    torch.testing.assert_close(probe.T @ probe / 40_000, torch.linalg.inv(torch.cov(chi.T)), rtol=0.03, atol=0.03)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reversible", [False, True])
def test_sqrt_model(reversible):
    """Linear 1.281, VAMPnet 1.788 (10,000 frames); what the hidden states themselves would score is the bound."""
    states, tokens = sqrt_data()
    linear = fit_linear(tokens[:, 0, 0], 1, 1, reversible=reversible)
    assert vamp_score(linear) == pytest.approx(1.281, abs=0.01)
    result = train_vampnet(lobe(), tokens, 1, 1, reversible=reversible, epochs=25, batch_size=500, lr=5e-3, patience=25)
    bound = vamp_score(vamp(covariances(np.float64(states)[:, None], 1, reversible=reversible)))
    assert vamp_score(result.model) == pytest.approx(1.788, abs=0.03)
    assert vamp_score(result.model) == pytest.approx(bound, abs=0.015)
    # Data it has not seen, and what it learned: the hidden state.
    fresh_states, fresh = sqrt_data(seed=11)
    assert held_out_score(result, [fresh], 1, reversible=reversible) == pytest.approx(1.788, abs=0.04)
    psi = result.transform(fresh)[:, 0]
    assert abs(np.corrcoef(psi, fresh_states)[0, 1]) > 0.98


@pytest.mark.slow
def test_four_well_eigenfunctions():
    """A state-free reversible VAMPnet on x alone recovers the three slow processes."""
    x = prinz_potential(h=1e-3, n_steps=10).trajectory(np.array([[0.2]]), 60_000, seed=3)
    basis = np.exp(-0.5 * ((x - np.linspace(-1, 1, 15)) / 0.12) ** 2)
    rich = fit_linear(basis, 10, 3, pca=None)
    result = train_vampnet(lobe(1, 3), as_tokens(x), 10, 3, epochs=12, batch_size=2000, lr=5e-3, patience=12)
    np.testing.assert_allclose(result.model.singular_values, [0.888, 0.450, 0.210], atol=0.035)
    np.testing.assert_allclose(result.model.singular_values, rich.singular_values, atol=0.015)


@pytest.mark.parametrize("reversible", [False, True])
def test_result_is_white_signed_and_the_best_epoch(reversible):
    _, tokens = sqrt_data(3000)
    calls = []
    result = small(tokens, reversible=reversible, epochs=4, progress=lambda *args: calls.append(args))
    history = result.history
    assert [len(history[k]) for k in ("loss", "train", "validation")] == [4, 4, 4] and json.dumps(history)
    assert result.best_epoch == int(np.argmax(history["validation"]))
    assert calls == [(k, 4, history["train"][k], history["validation"][k]) for k in range(4)]
    psi = result.transform(tokens)
    inner = covariances(psi, 1, reversible=reversible)
    np.testing.assert_allclose(inner.c00, 1, atol=1e-9)
    np.testing.assert_allclose(inner.mean_0, 0, atol=1e-9)
    assert skewness(psi)[0] > 0 and psi.dtype == np.float64 and not result.lobe.training
    if reversible:
        np.testing.assert_allclose(np.abs(inner.c0t)[0], result.model.singular_values, atol=1e-9)
    # A live CV evaluates the float32 lobe: the same values to its precision.
    with torch.no_grad():
        np.testing.assert_allclose(result.model.transform(result.lobe(torch.as_tensor(tokens))), psi, atol=1e-3)


def test_best_weights_are_restored_and_training_stops():
    """A learning rate that soon ruins the lobe: patience ends it, and what is returned is not the ruin."""
    _, tokens = sqrt_data(3000)
    result = small(tokens, epochs=40, patience=2, lr=0.05)
    validation = result.history["validation"]
    assert len(validation) == result.best_epoch + 3 < 40
    # The same seed for just as long as the best epoch ends with the same weights.
    again = small(tokens, epochs=result.best_epoch + 1, patience=50, lr=0.05)
    for a, b in zip(result.lobe.state_dict().values(), again.lobe.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_held_out_score_of_noise_is_that_of_fresh_noise():
    """Scores of noise lie above 1 by chi-square over the number of pairs; the best of the epochs' by several times that."""
    chosen, tested, fresh = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        result = small(as_tokens(rng.normal(size=(1000, 2))), epochs=25, patience=25, lr=0.02, seed=seed)
        chosen.append(200 * (max(result.history["validation"]) - 1))
        tested.append(100 * (result.test_score - 1))
        fresh.append(1000 * (held_out_score(result, [as_tokens(rng.normal(size=(1000, 2)))], 1) - 1))
    assert max(np.mean(fresh), np.mean(tested)) < 2.2 < np.mean(chosen)
    assert 0 < result.test_error < 0.05


def test_test_blocks_have_no_part_in_training():
    """Other frames there change the test score and, as it is estimated over all data, the projection; nothing else."""
    _, tokens = sqrt_data(3000)
    _, _, test = hold_out([3000], 1, (0.2, 0.1), seed=4)
    other = tokens.copy()
    for segment in test:
        segment.take([other])[:] = sqrt_data(3000, seed=9)[1][segment.start : segment.stop]
    a, b = (small(x, seed=4) for x in (tokens, other))
    assert a.history == b.history and a.test_score != b.test_score
    for x, y in zip(a.lobe.state_dict().values(), b.lobe.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert not np.array_equal(a.model.projection, b.model.projection)
    assert a.test_score == pytest.approx(held_out_score(a, [s.take([tokens]) for s in test], 1), abs=1e-3)
    assert 0 < a.test_error < 0.1
    without = small(tokens, test_fraction=0.0)
    assert without.test_score is None and without.test_error is None


def test_seed_decides_everything_and_nothing_outside_changes():
    _, tokens = sqrt_data(1500)
    original = lobe()
    before = {k: v.clone() for k, v in original.state_dict().items()}
    state = torch.random.get_rng_state()
    a = train_vampnet(original, tokens, 1, 1, epochs=2, batch_size=300, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
    torch.manual_seed(77)
    np.random.seed(77)
    b = train_vampnet(original, tokens, 1, 1, epochs=2, batch_size=300, seed=1)
    c = train_vampnet(original, tokens, 1, 1, epochs=2, batch_size=300, seed=2)
    np.testing.assert_array_equal(a.model.projection, b.model.projection)
    assert a.history == b.history != c.history


def test_statistics_come_from_the_training_segments_and_are_kept():
    _, tokens = sqrt_data(1500)
    result = small(100 + 1e3 * tokens, epochs=1)
    assert result.lobe.has_statistics
    assert result.lobe.standardise.mean[0, 0].item() == pytest.approx(100, abs=1000)
    given = lobe()
    given.set_statistics(tokens[:100])
    kept = train_vampnet(given, tokens, 1, 1, epochs=1)
    assert torch.equal(kept.lobe.standardise.mean, given.standardise.mean)


def test_trajectories_are_not_stitched():
    """Two runs, each confined to one side: their joint would be the only transition."""
    rng = np.random.default_rng(0)
    runs = [as_tokens(0.1 * rng.normal(size=(800, 2)) + shift) for shift in (-1, 1)]
    result = small(runs, epochs=3)
    assert result.model.singular_values[0] > 0.9999
    joined = small(np.concatenate(runs), epochs=3)
    assert joined.model.singular_values[0] < 0.9995


def test_error_of_a_score_that_one_block_alone_does_not_have():
    """A test block in each of two basins: the error is that of either's frames, not of leaving out a basin."""
    rng = np.random.default_rng(0)
    runs = [as_tokens(0.1 * rng.normal(size=(800, 2)) + shift) for shift in (-1, 1)]
    result = small(runs, lagtime=20, epochs=2)
    assert result.test_score > 1.95 and 0 < result.test_error < 0.02


def test_plain_lobe_and_no_validation():
    _, tokens = sqrt_data(3000)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
    result = train_vampnet(plain, torch.as_tensor(tokens), 1, 2, epochs=2, validation_fraction=0.0)
    assert result.history["validation"] == [] and len(result.history["train"]) == 2 and result.best_epoch == 1
    assert result.transform(tokens).shape == (3000, 2)


def test_weights_reach_loss_scores_and_model():
    """Frames of weight zero do not count, in training or in the projection."""
    _, tokens = sqrt_data(2000)
    spoiled = np.concatenate([tokens, np.full_like(tokens[:50], 3.0)])
    weights = np.r_[np.ones(1999), np.zeros(51)]
    result = small(spoiled, weights=weights, epochs=6, validation_fraction=0.0)
    inner = covariances(result.transform(spoiled), 1, weights)
    np.testing.assert_allclose(inner.c00, 1, atol=1e-9)
    assert inner.n_pairs == 2049 and inner.effective_pairs == pytest.approx(1999)
    clean = small(tokens, epochs=6, validation_fraction=0.0)
    assert vamp_score(result.model) == pytest.approx(vamp_score(clean.model), abs=0.02)


def test_gradient_penalty_softens():
    """The mean squared slope of the whitened output falls; a penalised CV is still a good one."""
    _, tokens = sqrt_data(4000)

    def slope(result):
        t = torch.as_tensor(tokens, dtype=torch.float64).requires_grad_()
        chi = result.lobe.double()(t)
        psi = (chi @ torch.as_tensor(result.model.projection)).sum()
        (gradient,) = torch.autograd.grad(psi, t)
        return (gradient * torch.as_tensor(tokens.std(0))).square().flatten(1).sum(1).mean().item()

    free = small(tokens, epochs=8, lr=5e-3, validation_fraction=0.0)
    soft = small(tokens, epochs=8, lr=5e-3, validation_fraction=0.0, gradient_penalty=0.05)
    assert slope(soft) < 0.7 * slope(free)
    assert vamp_score(soft.model) > 1.5


def test_cross_validation_of_a_vampnet():
    _, tokens = sqrt_data(3000)
    scores = cross_validate(lambda x: small(x, epochs=6, lr=5e-3, validation_fraction=0.0), [tokens], 1, folds=2)
    linear = cross_validate(lambda x: fit_linear(x, 1, 1), [tokens[:, 0, 0]], 1, folds=2)
    assert (scores > linear + 0.2).all()


def test_attention_lobe_trains():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(600, 3, 4, 4)).astype(np.float32)
    slow = np.repeat(rng.choice([-1.0, 1.0], 30), 20)
    tokens[:, 1, 0, 2] += 3 * slow
    attention = make_mixer("attention", 3, 4, width=16, feedforward=16, readout=16, out_features=2)
    result = train_vampnet(attention, tokens, 2, 1, epochs=12, batch_size=200, gradient_penalty=0.001, test_fraction=0)
    assert abs(np.corrcoef(result.transform(tokens)[:, 0], slow)[0, 1]) > 0.9


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_say_what_and_where():
    _, tokens = sqrt_data(1500)
    broken = [tokens[:500].copy(), tokens[500:].copy()]
    broken[1][41, 0, 2, 1] = np.inf
    with pytest.raises(GeomGNNError, match="Trajectory 1 .*frame 41"):
        small(broken)
    with pytest.raises(GeomGNNError, match="Trajectory 1 has 30 frames"):
        small([tokens, tokens[:30]], lagtime=30)
    with pytest.raises(GeomGNNError, match="n_components is 3 but only 2"):
        small(tokens, n_components=3)
    with pytest.raises(GeomGNNError, match="use fit_linear"):
        train_vampnet(make_mixer("none", 1, 2), tokens, 1, 1)
    with pytest.raises(GeomGNNError, match="epochs must be"):
        small(tokens, epochs=0)
    with pytest.raises(GeomGNNError, match="lr and ridge must be positive"):
        small(tokens, lr=0)
    with pytest.raises(GeomGNNError, match="validation fraction"):
        small(tokens, validation_fraction=1.0)
    with pytest.raises(GeomGNNError, match="must return"):
        train_vampnet(nn.Linear(2, 2), tokens, 1, 1)
    with pytest.raises(GeomGNNError, match="alike in all"):
        small([tokens, tokens[..., :1]])


def test_divergence_is_an_error_not_a_model():
    class Exploding(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(2))

        def forward(self, tokens):
            return torch.exp(torch.exp(self.log_scale * 1e3)) * tokens[:, 0, 0]

    _, tokens = sqrt_data(1500)
    with pytest.raises(GeomGNNError, match="lower learning rate"):
        train_vampnet(Exploding(), tokens, 1, 1, epochs=5, lr=10.0)
