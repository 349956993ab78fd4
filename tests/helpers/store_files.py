"""Small embedding stores of random numbers."""

import numpy as np

from openmm_geomgnn.representation.store import Embeddings

SETTINGS = {
    "dtype": "float32",
    "molecule": [[0, "ALA", {"C": 2}]],
    "atoms": ["CA", "CB"],
    "topology": "/nowhere/a.pdb",
    "encoder_source": "et-64",
    **dict.fromkeys(("selection", "window", "context", "radius", "pooling")),
}


FRAMES, CHUNK = 23, 5


def entry(frames=FRAMES, name="a.xtc"):
    return {"name": name, "path": f"/nowhere/{name}", "size": 1, "sha256": "0", "frames": frames}


def contents(store, k, number):
    """Random tokens and positions, and times, for one chunk."""
    frames = store.chunks(k)[number]
    rng = np.random.default_rng([k, number])
    shape = len(frames), 1, 4, 6
    return rng.normal(size=shape), rng.normal(size=(len(frames), 2, 3)), 2.0 * np.array(frames)


def new(path, dtype="float32", frames=FRAMES, chunk=CHUNK):
    store = Embeddings.create(path, {**SETTINGS, "dtype": dtype})
    store.add(entry(frames), (1, 4, 6), 2, chunk)
    return store
