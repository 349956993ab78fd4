"""Molecules with labels: the store, atomic references, and what the trainer makes of them."""

import numpy as np
import pytest
import torch

from torchmdnet_ext.datasets.labelled import Label, LabelledMolecules, LabelledStore, read_labelled, write_labelled

FREE = {1: -13.0, 6: -1030.0, 8: -2042.0}  # references
BONDED = {1: -2.0, 6: -6.0, 8: -4.0}  # what an atom gains in a molecule


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """30 random molecules, whose energy is exactly a sum over atoms; oxygen is only in the last five."""
    rng = np.random.default_rng(1)
    zs = [rng.permutation([6, 1, 1, *rng.choice([1, 6] if i < 25 else [1, 8], 4)]) for i in range(30)]
    energy = [sum(FREE[int(z)] + BONDED[int(z)] for z in one) for one in zs]
    arrays = {
        "z": np.concatenate(zs).astype(np.uint8),
        "pos": rng.normal(size=(sum(map(len, zs)), 3)).astype(np.float32),
        "ptr": np.cumsum([0, *map(len, zs)]),
        "labels": np.column_stack([energy, rng.normal(-7.0, 0.5, 30)]),
        "index": np.arange(100, 130),
    }
    labels = (Label("energy", "eV", FREE), Label("homo", "eV"))
    file = tmp_path_factory.mktemp("labelled") / "store.safetensors"
    write_labelled(file, LabelledStore(labels, arrays, {"molecule": np.arange(30, dtype=np.int32)}, "a test"))
    return file


def test_what_is_written_is_read(path):
    store = read_labelled(path)
    assert [label.name for label in store.labels] == ["energy", "homo"] and store.labels[0].references == FREE
    assert store.labels[1].references is None and store.how == "a test" and len(store) == 30
    dataset = LabelledMolecules(path, "homo")
    assert dataset[3].y.shape == (1, 1) and dataset[3].y.dtype == torch.float64
    assert float(dataset[3].y) == store.arrays["labels"][3, 1] and dataset[3].pos.shape == (7, 3)
    assert dataset.elements().tolist() == [1, 6, 8] and dataset.composition().sum() == 210


def test_references_are_fitted_to_the_training_molecules(path):
    train = np.arange(25)
    stored, fitted = LabelledMolecules(path, "energy"), LabelledMolecules(path, "energy", "fitted")
    with pytest.raises(ValueError, match="call fit_references first"):
        fitted.get_atomref()
    stored.fit_references(train)
    fitted.fit_references(train)
    for z, free in FREE.items():
        assert float(stored.get_atomref()[z]) == free
        # no training molecule has oxygen, whose stored reference stays
        assert float(fitted.get_atomref()[z]) == pytest.approx(free + (BONDED[z] if z < 8 else 0.0))
    # the composition explains all
    assert fitted.standardisation(train, "Scalar", True) == pytest.approx((0.0, 1.0))
    mean, scale = stored.standardisation(train, "Scalar", True)
    gained = [sum(BONDED[int(z)] for z in stored[i].z) for i in train]
    assert (mean, scale) == pytest.approx((np.mean(gained), np.std(gained)))
    with pytest.raises(ValueError, match="no atomic references for homo"):
        LabelledMolecules(path, "homo").get_atomref()


def test_the_scale_is_that_of_the_head(path):
    dataset = LabelledMolecules(path, "homo")
    values = dataset.values[:20]
    assert dataset.standardisation(range(20), "Scalar", False) == pytest.approx((values.mean(), values.std()))
    assert dataset.standardisation(range(20), "DipoleMoment", False) == pytest.approx((0.0, values.std()))
    mean, scale = dataset.standardisation(range(20), "ElectronicSpatialExtent", False)
    extents = [float((dataset[i].pos - dataset[i].pos.mean(0)).square().sum()) for i in range(20)]
    assert mean == 0 and scale == pytest.approx(values.mean() / np.mean(extents))


@pytest.mark.parametrize(
    ("label", "references", "message"),
    [("hom", "stored", "no label 'hom', but energy, homo. Did you mean 'homo'"), ("homo", "fit", "references is 'fit'")],
)
def test_arguments_that_make_no_sense(path, label, references, message):
    with pytest.raises(ValueError, match=message):
        LabelledMolecules(path, label, references)


def test_damaged_files(path, tmp_path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    (tmp_path / "changed.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="was changed or damaged"):
        read_labelled(tmp_path / "changed.safetensors")
    (tmp_path / "short.safetensors").write_bytes(content[:50])
    with pytest.raises(ValueError, match="damaged, or no store of labelled molecules"):
        read_labelled(tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="There is no store"):
        read_labelled(tmp_path / "none.safetensors")
