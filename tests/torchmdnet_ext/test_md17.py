"""TorchMD-Net's MD17 with the versions of PyTorch that are supported: a file of the published layout, no download."""

import numpy as np
import pytest
from torchmdnet import datasets

Z = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])  # ethanol


@pytest.fixture
def published(tmp_path):
    """Three frames as rMD17 publishes them."""
    rng = np.random.default_rng(1)
    frames = {"coords": rng.normal(size=(3, 9, 3)), "energies": rng.normal(size=3), "forces": rng.normal(size=(3, 9, 3))}
    folder = tmp_path / "raw" / "rmd17" / "npz_data"
    folder.mkdir(parents=True)
    np.savez(folder / "rmd17_ethanol.npz", nuclear_charges=Z, **frames)
    return tmp_path, frames


def test_revised_md17_is_read(published):
    root, frames = published
    for _ in range(2):  # what was processed, and what was kept of that
        found = datasets.MD17(str(root), molecules="revised_ethanol")
        assert len(found) == 3
        for k, data in enumerate(found):
            assert data.z.tolist() == Z.tolist()
            np.testing.assert_allclose(data.pos, frames["coords"][k], rtol=1e-6)
            np.testing.assert_allclose(data.neg_dy, frames["forces"][k], rtol=1e-6)
            assert data.y.item() == pytest.approx(frames["energies"][k], rel=1e-6)
