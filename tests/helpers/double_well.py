"""Two wells with a barrier, sampled exactly under a bias, with the free energies known."""

import numpy as np

KT = 0.00831446261815324 * 300


# A double well with a barrier of 4.8 kT and a tilt, and a bias that takes away three quarters of the barrier and tilts the
# other way: without weights, the difference between the wells is wrong by several kJ/mol.
def well(s):
    return 4.8 * KT * (s**2 - 1) ** 2 + 1.2 * s


def bias(s):
    return np.where(np.abs(s) < 1, -0.75 * 4.8 * KT * (s**2 - 1) ** 2, 0.0) - 2.4 * np.tanh(s)


GRID = np.linspace(-2.5, 2.5, 20001)
EXACT = np.exp(-well(GRID) / KT)
EXACT_DELTA_F = -KT * np.log(EXACT[GRID > 0].sum() / EXACT[GRID <= 0].sum())


def metropolis(energy, n_chains, n_frames, seed):
    """Exact, correlated samples: (n_frames, n_chains), started from the Boltzmann distribution."""
    rng = np.random.default_rng(seed)
    start = np.exp(-energy(GRID) / KT)
    s = rng.choice(GRID, size=n_chains, p=start / start.sum())
    e, chain = energy(s), np.empty((n_frames, n_chains))
    for frame in chain:
        trial = s + 0.25 * rng.normal(size=n_chains)
        e_trial = energy(trial)
        accepted = rng.random(n_chains) < np.exp(np.minimum(0, (e - e_trial) / KT))
        s, e = np.where(accepted, trial, s), np.where(accepted, e_trial, e)
        frame[:] = s
    return chain
