"""One lobe for several systems: what is slow in each is found, not which system it is, and a training can be resumed."""

import numpy as np
import pytest
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import train_shared_lobe

LAG, FRAMES = 5, 1500


def system(seed, offset):
    """(T, 4): one slow coordinate and three fast ones, mixed in the same way in all systems, around a mean of its own."""
    rng = np.random.default_rng(seed)
    slow = np.zeros(FRAMES)
    for t in range(1, FRAMES):
        slow[t] = 0.97 * slow[t - 1] + 0.24 * rng.normal()
    hidden = np.column_stack([slow, rng.normal(size=(FRAMES, 3))])
    mixing = np.random.default_rng(0).normal(size=(4, 4))
    return torch.tensor(hidden @ mixing + offset, dtype=torch.float32), slow


def lobe(outputs=2):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, outputs))


def test_the_slow_function_of_all_holds_for_a_system_that_was_not_seen():
    systems = [system(1, 0.0), system(2, 0.4), system(3, -0.3)]
    shared = train_shared_lobe(lobe(), [[x] for x, _ in systems], [LAG] * 3, 1, epochs=25, lr=1e-2, seed=1)
    unseen, slow = system(4, 0.2)
    psi = shared.transform(unseen)[:, 0]
    assert abs(np.corrcoef(psi, slow)[0, 1]) > 0.9
    assert shared.model.singular_values[0] == pytest.approx(0.97**LAG, abs=0.08)
    assert shared.history["validation"][shared.best_epoch] == max(shared.history["validation"])


def test_which_system_it_is_is_not_slow():
    """Two systems of noise, far apart: together their mean would be a function that never decays."""
    rng = np.random.default_rng(5)
    systems = [[torch.tensor(rng.normal(size=(FRAMES, 4)) + offset, dtype=torch.float32)] for offset in (0.0, 2.0)]
    shared = train_shared_lobe(lobe(), systems, [LAG, LAG], 1, epochs=10, seed=1)
    assert shared.model.singular_values[0] < 0.15


def test_systems_may_have_lengths_and_lags_of_their_own():
    long, short = system(1, 0.0)[0], system(2, 0.3)[0][:400]
    shared = train_shared_lobe(lobe(), [[long, long], [short]], [LAG, 2 * LAG], 1, epochs=2, batch_size=100, seed=1)
    assert shared.outputs(short).shape == (400, 2) and shared.transform(long).shape == (FRAMES, 1)


def test_a_training_that_was_stopped_ends_as_it_would_have():
    data = [[system(1, 0.0)[0]], [system(2, 0.4)[0]]]
    states = []
    options = {"epochs": 4, "seed": 1, "batch_size": 300}
    whole = train_shared_lobe(lobe(), data, [LAG, LAG], 1, **options)
    train_shared_lobe(lobe(), data, [LAG, LAG], 1, **{**options, "epochs": 2}, keep=lambda state: states.append(state()))
    resumed = train_shared_lobe(lobe(), data, [LAG, LAG], 1, resume=states[-1], **options)
    assert resumed.history == whole.history
    np.testing.assert_array_equal(resumed.model.projection, whole.model.projection)


@pytest.mark.parametrize(
    ("systems", "lags", "options", "message"),
    [
        ([], [], {}, "no systems"),
        ([[torch.zeros(4, 4)]], [LAG], {}, "lag"),
        ([[system(1, 0.0)[0]]], [LAG], {"gradient_penalty": 0.1}, "gradient_penalty"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(systems, lags, options, message):
    with pytest.raises(GeomGNNError, match=message):
        train_shared_lobe(lobe(), systems, lags, 1, epochs=1, **options)


def test_more_components_than_outputs_are_refused():
    with pytest.raises(GeomGNNError, match="n_components is 3"):
        train_shared_lobe(lobe(), [[system(1, 0.0)[0]]], [LAG], 3, epochs=1)
