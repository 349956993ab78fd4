"""Trajectories with one slow motion that is known: alanine dipeptide turning about its phi angle."""

import mdtraj
import numpy as np
import pytest
from molecules import ala2, random_encoder

from torchmdnet_ext.checkpoints import write_encoder

TIMESCALE = 40.0  # ps, of the slow motion


INTERVAL = 2.0  # ps


def slow_motion(n, seed):
    """(n,) samples of an Ornstein-Uhlenbeck process of unit variance, INTERVAL apart."""
    rng, decay = np.random.default_rng(seed), np.exp(-INTERVAL / TIMESCALE)
    values = [rng.normal()]
    while len(values) < n:
        values.append(decay * values[-1] + np.sqrt(1 - decay**2) * rng.normal())
    return np.array(values)


def trajectory(n=500, seed=0):
    """Alanine dipeptide that slowly turns about its phi angle and otherwise only trembles."""
    frame, rng = ala2(), np.random.default_rng(seed + 100)
    xyz, angles = frame.xyz[0].astype(np.float64), 0.5 * slow_motion(n, seed)
    origin = xyz[8]
    axis = (xyz[8] - xyz[6]) / np.linalg.norm(xyz[8] - xyz[6])
    beyond = np.arange(9, 22)  # the atoms on the far side of the bond N-CA
    positions = np.tile(xyz, (n, 1, 1))
    arm = xyz[beyond] - origin
    c, s = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    along = (arm @ axis)[:, None] * axis
    positions[:, beyond] = origin + along + c * (arm - along) + s * np.cross(axis, arm)
    return mdtraj.Trajectory(positions + 0.003 * rng.normal(size=positions.shape), frame.topology), angles


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "random.safetensors"
    random = random_encoder(seed=8)
    write_encoder(path, random.settings, random.network)
    return str(path)
