"""Conformers from trajectories: formats, strides, selections, molecules cut by the periodic box."""

import importlib.util
from dataclasses import replace

import mdtraj
import numpy as np
import pytest
from molecules import ALA2
from scipy.spatial.distance import pdist
from source_runs import run

from openmm_geomgnn.conformers.sources import SOURCES, trajectory
from openmm_geomgnn.errors import GeomGNNError

# mdtraj's own HDF5 format needs PyTables
ENDINGS = ["xtc", "dcd", "trr", "nc", "pdb", *(["h5"] if importlib.util.find_spec("tables") else [])]


@pytest.fixture(scope="module")
def ala2(tmp_path_factory):
    """Frames of alanine dipeptide in a box that cuts the molecule, with an ion, as files of several formats."""
    folder = tmp_path_factory.mktemp("ala2")
    molecule = mdtraj.load(str(ALA2))
    topology = molecule.topology.copy()
    ion = topology.add_residue("CL", topology.add_chain())
    topology.add_atom("CL", mdtraj.element.chlorine, ion)
    rng = np.random.default_rng(5)
    whole = molecule.xyz[0] + rng.normal(scale=0.003, size=(23, molecule.n_atoms, 3)) + rng.uniform(0, 3, size=(23, 1, 3))
    xyz = np.concatenate([whole, rng.uniform(0, 3, size=(23, 1, 3))], axis=1) % 3.0
    frames = mdtraj.Trajectory(xyz, topology, unitcell_lengths=[[3.0] * 3] * 23, unitcell_angles=[[90.0] * 3] * 23)
    assert np.ptp(xyz[:, :-1], axis=1).max() > 2.5
    for ending in ENDINGS:
        frames.save(str(folder / f"run.{ending}"))
    frames[0].save(str(folder / "top.pdb"))
    return folder, whole * 10


@pytest.mark.filterwarnings("ignore:Warning. The .netCDF4.")
@pytest.mark.parametrize("ending", ENDINGS)
def test_trajectory(ala2, ending, monkeypatch):
    folder, whole = ala2
    own = ending in ("h5", "pdb")
    source = SOURCES["trajectory"](
        file=str(folder / f"run.{ending}"), topology=None if own else str(folder / "top.pdb"), stride=3
    )
    monkeypatch.setattr(trajectory, "ATOMS_PER_TASK", 23 * 3)
    assert len(source.tasks(1)) == 3
    found, skipped = run(source)
    assert len(found) == 8 and not skipped
    z = [atom.element.number for atom in mdtraj.load_topology(str(ALA2)).atoms]
    for (numbers, pos), expected in zip(found, whole[::3], strict=True):
        assert numbers.tolist() == z and pos.shape == (22, 3)
        np.testing.assert_allclose(pdist(pos), pdist(expected), atol=0.03)
    some, _ = run(replace(source, number=3, selection="protein and not element H"))
    assert len(some) == 3 and all(numbers.tolist() == [k for k in z if k > 1] for numbers, _ in some)


def test_several_trajectories_are_several_tasks(ala2):
    folder, _ = ala2
    source = SOURCES["trajectory"](
        file=[str(folder / "run.xtc"), str(folder / "run.[dt][cr]*")], topology=str(folder / "top.pdb")
    )
    assert [task[0][0].rsplit(".")[-1] for task in source.tasks(1)] == ["xtc", "dcd", "trr"]
    assert len(run(source)[0]) == 69


@pytest.mark.filterwarnings("ignore:Warning. The .netCDF4.")
def test_bad_trajectories(ala2, tmp_path):
    folder, _ = ala2
    source = SOURCES["trajectory"](file=str(folder / "run.xtc"), topology=str(folder / "top.pdb"))
    for wrong, message in (
        ({"stride": 0}, "stride of the conformer source `trajectory` is 0"),
        ({"selection": "resname WAT"}, "'resname WAT' matches none"),
        ({"topology": str(ALA2)}, r"run\.xtc cannot be read with a topology of 22 atoms"),
        ({"topology": str(folder / "none.pdb")}, r"topology .* names .*none\.pdb, which is not a file"),
    ):
        with pytest.raises(GeomGNNError, match=message):
            run(replace(source, **wrong))
    broken = mdtraj.load(str(folder / "run.nc"), top=str(folder / "top.pdb"))
    broken.xyz[4, 3] = np.nan
    broken.save(str(tmp_path / "broken.nc"))
    found, skipped = run(replace(source, file=str(tmp_path / "broken.nc")))
    assert len(found) == 22 and skipped == {"has coordinates that are not finite": 1}
