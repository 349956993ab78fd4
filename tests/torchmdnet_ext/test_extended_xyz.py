"""Energies and forces from extended XYZ: what is read, how it is split, what is refused."""

import numpy as np
import pytest
import torch
from ase.io import write
from labelled_frames import OFFSET, frames

from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ


def test_what_is_written_is_read(tmp_path):
    made = frames(5)
    write(tmp_path / "all.xyz", made, format="extxyz")
    dataset = ExtendedXYZ(tmp_path / "all.xyz")
    assert len(dataset) == 5 and dataset.given_split() is None and dataset.elements().tolist() == [1, 6, 8]
    for read, atoms in zip(map(dataset.__getitem__, range(5)), made, strict=True):
        assert read.z.tolist() == [6, 8, 1, 1] and read.pos.dtype == torch.float32
        assert read.y.dtype == read.neg_dy.dtype == torch.float64 and read.y.shape == (1, 1)
        assert np.allclose(read.pos, atoms.positions, atol=1e-6)
        assert float(read.y) == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        assert np.allclose(read.neg_dy, atoms.get_forces(), atol=1e-7)
    # what is left to learn is free of the total energy
    dataset.fit_references([0, 1, 2])
    mean, spread = dataset.standardisation([0, 1, 2], "Scalar", True)
    assert abs(mean) < 1e-6 and spread == pytest.approx(np.std([float(dataset[i].y) for i in range(3)]))


def test_files_of_three_sets(tmp_path):
    for number, name in ((6, "train"), (2, "val"), (3, "test")):
        write(tmp_path / f"mal_{name}.xyz", frames(number, seed=number), format="extxyz")
    for dataset in (
        ExtendedXYZ(tmp_path),
        ExtendedXYZ(tmp_path, train="mal_train.xyz", val="mal_val.xyz", test=tmp_path / "mal_test.xyz"),
    ):
        assert [part.tolist() for part in dataset.given_split()] == [list(range(6)), [6, 7], [8, 9, 10]]
        first = frames(3, seed=3)[0].get_potential_energy()
        assert float(dataset[8].y) == pytest.approx(first, abs=1e-7)
    with pytest.raises(ValueError, match="names the file for train but not for val, test: give all three"):
        ExtendedXYZ(tmp_path, train="mal_train.xyz")
    write(tmp_path / "other_val.extxyz", frames(1), format="extxyz")
    with pytest.raises(ValueError, match="with val in its name, but there is mal_val.xyz, other_val.extxyz"):
        ExtendedXYZ(tmp_path)
    with pytest.raises(ValueError, match=r"There is no file .*none\.xyz"):
        ExtendedXYZ(tmp_path / "none.xyz")


def test_a_file_that_would_be_two_sets_is_refused(tmp_path):
    for name in ("train_val", "test"):
        write(tmp_path / f"{name}.xyz", frames(2), format="extxyz")
    with pytest.raises(ValueError, match="The same file is named for more than one set"):
        ExtendedXYZ(tmp_path)
    with pytest.raises(ValueError, match="The same file is named for more than one set"):
        ExtendedXYZ(tmp_path, train="test.xyz", val="train_val.xyz", test="test.xyz")


def test_labels_of_other_names(tmp_path):
    made = frames(2)
    for atoms in made:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = 2 * OFFSET, 3 * atoms.get_forces()
        atoms.calc = None
    write(tmp_path / "all.xyz", made, format="extxyz")
    dataset = ExtendedXYZ(tmp_path / "all.xyz", energy="REF_energy", forces="REF_forces")
    assert float(dataset[1].y) == pytest.approx(2 * OFFSET)
    assert np.allclose(dataset[1].neg_dy, 3 * frames(2)[1].get_forces(), atol=1e-7)
    with pytest.raises(ValueError, match=r"frame 1 of .* has no energy called 'energy', but REF_energy"):
        ExtendedXYZ(tmp_path / "all.xyz")
    with pytest.raises(ValueError, match=r"has no forces called 'forces', but .*REF_forces: name it in dataset_arg"):
        ExtendedXYZ(tmp_path / "all.xyz", energy="REF_energy")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("\nO ", "\nQq ", r"frame 2 of .* cannot be read as extended XYZ \(KeyError: 'Qq'\)"),
        ("\nO ", "\nX ", "frame 2 of .* atoms of unknown elements"),
        ('pbc="F F F"', 'pbc="T T T" Lattice="9 0 0 0 9 0 0 0 9"', "frame 2 of .* is periodic"),
        ("energy=", "energy=nan old=", "frame 2 of .* has energy that are not finite"),
        ("energy=", "energy=high old=", "frame 2 of .* has energy 'energy' that are not numbers"),
        ("forces:R:3", "forces:R:2:rest:R:1", r"frame 2 of .* has forces of shape \(4, 2\) instead of \(4, 3\)"),
    ],
)
def test_frames_that_are_refused(tmp_path, before, after, message):
    write(tmp_path / "good.xyz", frames(1), format="extxyz")
    text = (tmp_path / "good.xyz").read_text()
    assert before in text
    (tmp_path / "bad.xyz").write_text(text + text.replace(before, after))
    with pytest.raises(ValueError, match=message):
        ExtendedXYZ(tmp_path / "bad.xyz")


def test_forces_that_are_not_finite_are_refused(tmp_path):
    made = frames(3)
    made[2].calc.results["forces"][1, 2] = np.inf
    write(tmp_path / "bad.xyz", made, format="extxyz")
    with pytest.raises(ValueError, match="frame 3 of .* has forces that are not finite"):
        ExtendedXYZ(tmp_path / "bad.xyz")


def test_a_file_without_frames_is_refused(tmp_path):
    (tmp_path / "empty.xyz").write_text("")
    with pytest.raises(ValueError, match="has no frames"):
        ExtendedXYZ(tmp_path / "empty.xyz")
