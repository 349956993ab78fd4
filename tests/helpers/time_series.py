"""Time series whose slow modes are known."""

import numpy as np


def autoregressive(lengths=(700, 400), n=6, seed=0):
    """Trajectories of n mixed first-order autoregressive processes with a skewed slow one."""
    rng = np.random.default_rng(seed)
    decay = np.array([0.98, 0.9, 0.7, 0.5, 0.3, 0.1])[:n]
    mixing = rng.normal(size=(n, n))
    trajs = []
    for length in lengths:
        x = np.zeros((length, n))
        noise = rng.normal(size=(length, n)) * np.sqrt(1 - decay**2)
        x[0] = rng.normal(size=n)
        for t in range(1, length):
            x[t] = decay * x[t - 1] + noise[t]
        x[:, 0] = np.exp(0.7 * x[:, 0])
        trajs.append(x @ mixing + 3.0)
    return trajs
