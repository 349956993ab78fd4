"""Trajectories labelled by GFN2-xTB: their labels, their temperature, those that were killed, and what became of bonds."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.forces import labelling
from openmm_geomgnn.studies.forces.bonds import APART, OTHER, SAME, BondCheck
from openmm_geomgnn.studies.forces.labelling import Dynamics, calculator, label, piece_file, prepare, read_molecule
from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ

SHORT = Dynamics(frames=60, interval=0.002, timestep=0.0005, equilibration=0.05, friction=20.0)
needs_tblite = pytest.mark.skipif(labelling.importlib.util.find_spec("tblite") is None, reason="tblite is not installed")


@pytest.fixture(scope="module")
def water(tmp_path_factory):
    """Water at two temperatures."""
    folder = tmp_path_factory.mktemp("water")
    start = prepare(folder, "O", SHORT)
    files = sorted(label(folder, (300.0, 900.0), SHORT, 1))
    return folder, start, files


@needs_tblite
@pytest.mark.slow
def test_labels_are_energies_and_their_gradients(water):
    folder, start, files = water
    assert files == [piece_file(folder, temperature, piece) for temperature in (300.0, 900.0) for piece in (0, 1)]
    assert start.get_distance(0, 1) == pytest.approx(0.96, abs=0.01) and start.get_angle(1, 0, 2) == pytest.approx(
        107, abs=2
    )
    hot = [frame for file in files[2:] for frame in ase.io.read(file, ":")]
    assert len(hot) == 60 and [frame.info["time_ps"] for frame in hot[:3]] == [0.0, 0.002, 0.004]
    dataset = ExtendedXYZ(files[2])
    assert len(dataset) == 50
    one = hot[7].copy()
    one.calc = calculator(SHORT)
    assert one.get_potential_energy() == pytest.approx(float(dataset[7].y), abs=1e-5)
    energies = []
    for step in (1e-3, -1e-3):
        moved = one.copy()
        moved.positions[1, 2] += step
        moved.calc = calculator(SHORT)
        energies.append(moved.get_potential_energy())
    assert (energies[1] - energies[0]) / 2e-3 == pytest.approx(float(dataset[7].neg_dy[1, 2]), abs=2e-3)


@needs_tblite
@pytest.mark.slow
def test_a_killed_trajectory_goes_on_as_it_would_have(water, monkeypatch):
    folder, _, files = water
    before = files[1].read_bytes()
    files[1].unlink()
    (files[1].parent / f".{files[1].name}.temporary-killed.xyz").write_text("half a frame")
    times = [file.stat().st_mtime_ns for file in files if file != files[1]]
    assert sorted(label(folder, (300.0, 900.0), SHORT, 1)) == files and files[1].read_bytes() == before
    assert [file.stat().st_mtime_ns for file in files if file != files[1]] == times
    assert not list(files[1].parent.glob(".*"))
    monkeypatch.setattr(labelling, "run_jobs", lambda *given, **more: pytest.fail("a process was started"))
    assert sorted(label(folder, (300.0, 900.0), SHORT, 1)) == files
    with pytest.raises(GeomGNNError, match=r"holds labels of other settings \(seed\)"):
        prepare(folder, "O", Dynamics(**{**vars(SHORT), "seed": 2}))
    assert json.loads((folder / labelling.MADE_FROM).read_text())["molecule"] == "O"


@needs_tblite
def test_hotter_trajectories_are_hotter(water):
    folder = water[0]
    cold, hot = (
        np.mean([frame.get_temperature() for piece in (0, 1) for frame in ase.io.read(piece_file(folder, one, piece), ":")])
        for one in (300.0, 900.0)
    )
    # 9 degrees of freedom, few independent frames
    assert 100 < cold < 700 and cold < hot


def test_molecules_that_cannot_be_computed(tmp_path):
    with pytest.raises(GeomGNNError, match="has 9 electrons with a charge of 0, which do not give a multiplicity of 1"):
        read_molecule("[CH3]", Dynamics())
    assert len(read_molecule("[CH3]", Dynamics(multiplicity=2))[0]) == 4
    with pytest.raises(GeomGNNError, match="No molecule can be built of 'CCQ': not a valid SMILES"):
        read_molecule("CCQ", Dynamics())
    (tmp_path / "bad.xyz").write_text("three\n")
    with pytest.raises(GeomGNNError, match=r"bad\.xyz cannot be read by ASE"):
        read_molecule(str(tmp_path / "bad.xyz"), Dynamics())
    ase.io.write(tmp_path / "two.xyz", [Atoms("OH2", np.eye(3)), Atoms("O2", np.eye(3)[:2])])
    assert [str(one.symbols) for one in read_molecule(str(tmp_path / "two.xyz"), Dynamics())] == ["OH2"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(labelling.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GeomGNNError, match=r'tblite, which is not installed: pip install "openmm-geomgnn\[forces\]"'):
        calculator(Dynamics())
    with pytest.raises(GeomGNNError, match=r'RDKit, which is not installed: pip install "openmm-geomgnn\[data\]"'):
        read_molecule("O", Dynamics())


# the chelated enol of malonaldehyde, its proton on the first oxygen
Z = np.array([8, 6, 6, 6, 8, 1, 1, 1, 1])
POS = np.array(
    [[-1.26, 1.20, 0], [-1.21, -0.11, 0], [0.0, -0.78, 0], [1.21, -0.10, 0], [1.30, 1.13, 0],
     [-0.33, 1.50, 0], [-2.17, -0.60, 0], [0.0, -1.86, 0], [2.13, -0.69, 0]]
)  # fmt: skip


def test_what_becomes_of_bonds():
    check = BondCheck(Z, POS)
    rng = np.random.default_rng(1)
    assert all(check(POS + 0.05 * rng.normal(size=POS.shape)) == SAME for _ in range(20))
    between, arrived, broken, far = (POS.copy() for _ in range(4))
    between[5] = (POS[0] + POS[4]) / 2 + [0, 0.2, 0]  # 1.3 angstrom from both
    arrived[5] = [0.34, 1.45, 0]
    assert check(between) == OTHER and check(arrived) == SAME
    broken[8] += [0.55, -0.3, 0]  # a bond of 1.7 angstrom
    far[4:5] += [0, 1.5, 0]
    assert check(broken) == check(far) == APART
    # a hydrogen that moved from carbon to carbon makes another molecule
    moved = POS.copy()
    moved[8] = POS[2] + [0.3, -0.3, 1.0]
    assert check(moved) == OTHER


def test_a_complex_is_not_broken_at_the_start():
    two = np.concatenate([POS, POS + [0, 0, 4.0]])
    check = BondCheck(np.tile(Z, 2), two)
    assert check(two) == SAME
    two[-1] += [2.0, -1.0, 0]
    assert check(two) == APART
