"""Seeds: they lie in the basins that were seen, are minima of the molecule, and are there once."""

import json
from importlib.resources import files

import mdtraj
import numpy as np
import pytest
from openmm import app

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.explore import Explored
from openmm_geomgnn.sampling.seeds import choose_seeds, make_seeds, quench, write_seeds
from openmm_geomgnn.sampling.systems import load_structure
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

DATA = files("openmm_geomgnn.data")
C7EQ, C7AX = (str(DATA / f"ala2-{name}.pdb") for name in ("c7eq", "c7ax"))
SPEC = WalkerSpec(C7EQ, platform="Reference")


def shaken(structure, frames, seed, size=0.004):
    positions = load_structure(structure)[1]
    return positions + np.random.default_rng(seed).normal(scale=size, size=(frames, *positions.shape))


def torsions(positions):
    frames = mdtraj.Trajectory(np.asarray(positions), mdtraj.load(C7EQ).topology)
    angles = np.concatenate([mdtraj.compute_phi(frames)[1], mdtraj.compute_psi(frames)[1]], axis=1)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture(scope="module")
def explored():
    """A long piece in one basin, and a short one that ends in the other."""
    short = np.concatenate([shaken(C7EQ, 10, 1), shaken(C7AX, 4, 2)])
    return [Explored("long", shaken(C7EQ, 60, 0)), Explored("short", short, notes=("said before",))]


def test_seeds_are_spread_over_what_was_explored(explored):
    features = [torsions(piece.positions) for piece in explored]
    chosen = choose_seeds(features, explored, 6)
    assert 2 <= len(chosen) <= 6 and chosen == sorted(chosen) == choose_seeds(features, explored, 6)
    assert any(piece == 1 and frame >= 10 for piece, frame in chosen)
    assert choose_seeds(features, explored, 100) == [(0, k) for k in range(60)] + [(1, k) for k in range(14)]


def test_seeds_are_minima_and_there_once(explored, tmp_path):
    mirrored = Explored("mirrored", explored[0].positions[:1] * [1, 1, -1])
    chosen = [(0, 3), (0, 40), (1, 11), (1, 13), (2, 0)]
    pieces = [*explored, mirrored]
    seeds, notes = make_seeds(SPEC, pieces, chosen)
    assert [seed.origin.split(" of ")[1] for seed in seeds] == ["long", "short"]
    assert "frame 0 of mirrored is left out: the stereocentre CA" in notes[0] and notes[1].startswith("2 of 5 are left out")
    again, energies, faults = quench(SPEC, np.array([seed.positions for seed in seeds]))
    np.testing.assert_allclose(energies, [seed.energy for seed in seeds], atol=0.5)
    np.testing.assert_allclose(again, [seed.positions for seed in seeds], atol=0.02)
    assert faults == [None, None]
    # known structures need no seed
    rest, _ = make_seeds(SPEC, pieces, chosen, known=[load_structure(C7EQ)[1]])
    assert [seed.origin for seed in rest] == [seeds[1].origin]
    # and the files are structures from which a run can start
    paths = write_seeds(tmp_path, load_structure(C7EQ)[0], seeds, notes)
    said = json.loads((tmp_path / "seeds.json").read_text())
    assert said["notes"] == notes and [entry["file"] for entry in said["seeds"]] == [path.name for path in paths]
    assert said["seeds"][1]["torsions (degrees)"]["phi ALA2"] == pytest.approx(62, abs=10)
    for path, seed in zip(paths, seeds, strict=True):
        topology, positions = load_structure(path)
        np.testing.assert_allclose(positions, seed.positions, atol=1e-4)
        assert topology.getNumBonds() == load_structure(C7EQ)[0].getNumBonds()
        app.ForceField("amber14-all.xml", "implicit/obc2.xml").createSystem(topology)


def test_refusals(explored):
    with pytest.raises(GeomGNNError, match=r"features of \[3\] frames, but \[60, 14\] were explored"):
        choose_seeds([np.zeros((3, 2))], explored, 2)
    with pytest.raises(GeomGNNError, match="no frames to choose seeds from"):
        choose_seeds([np.zeros((0, 2))], [Explored("empty", np.zeros((0, 22, 3)))], 2)
    with pytest.raises(GeomGNNError, match="1 seed or more"):
        choose_seeds([np.zeros((60, 2)), np.zeros((14, 2))], explored, 0)
