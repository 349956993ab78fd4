"""Exploration from one structure: it leaves its basin, is made once, and what is no longer the molecule is left out."""

from dataclasses import replace
from importlib.resources import files

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app

from openmm_geomgnn.cli.settings import exploration
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.explore import ExploreSettings, explore, tempering, torsions
from openmm_geomgnn.sampling.explore.chirality import Guard
from openmm_geomgnn.sampling.explore.exploring import _molecules
from openmm_geomgnn.sampling.explore.files import PieceFiles
from openmm_geomgnn.sampling.explore.fourier import SIGMA, TorsionHills, dihedrals
from openmm_geomgnn.sampling.explore.torsions import bias_force, find_torsions
from openmm_geomgnn.sampling.explore.ways import WAYS, choose_ways
from openmm_geomgnn.sampling.systems import load_structure
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

DATA = files("openmm_geomgnn.data")
ALA2, PRO, ALA3 = (str(DATA / f"{name}.pdb") for name in ("ala2-c7eq", "pro-trans", "ala3"))
SHORT = {"length": 6, "frame_interval": 0.5, "ways": ("torsions",)}


def spec(structure=ALA2, **options):
    return WalkerSpec(structure, platform="Reference", **options)


# --------------------------------------------------------------------------------------------------------------- hills


def test_a_hill_is_a_gaussian_on_the_circle_and_the_next_one_is_tempered():
    hills = TorsionHills(2.0, 80.0, 300.0)
    once = hills.deposit(hills.start(1), np.array([3.0]))
    for angle in (3.0, 3.0 + SIGMA, -3.0, 0.0):
        away = (angle - 3.0 + np.pi) % (2 * np.pi) - np.pi
        expected = 2.0 * np.exp(-0.5 * (away / SIGMA) ** 2)
        np.testing.assert_allclose(hills.values(once, np.array([angle])), [expected], atol=2e-3)
    twice = hills.deposit(once, np.array([3.0]))
    first, both = (float(hills.values(bias, np.array([3.0]))[0]) for bias in (once, twice))
    kT = 0.0083144626 * 300
    np.testing.assert_allclose(both / first - 1, np.exp(-first / (80.0 - kT)), rtol=1e-6)


def test_openmm_applies_the_bias_that_is_counted():
    topology, positions = load_structure(ALA2)
    atoms = find_torsions(topology).atoms
    hills, rng = TorsionHills(2.0, 80.0, 300.0), np.random.default_rng(1)
    bias = hills.start(len(atoms))
    for _ in range(5):
        bias = hills.deposit(bias, rng.uniform(-np.pi, np.pi, len(atoms)))
    system = openmm.System()
    for _ in positions:
        system.addParticle(1.0)
    for number, four in enumerate(atoms):
        force = bias_force(number, four)
        for k, value in enumerate(bias[number]):
            force.setGlobalParameterDefaultValue(k, value)
        system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    np.testing.assert_allclose(energy, hills.values(bias, dihedrals(positions, atoms)).sum(), atol=1e-9)


@pytest.mark.parametrize(
    ("structure", "omega", "names"),
    [
        (ALA2, "auto", {"phi ALA2", "psi ALA2"}),
        (ALA2, True, {"phi ALA2", "psi ALA2", "omega ACE1-ALA2", "omega ALA2-NME3"}),
        (PRO, "auto", {"omega ACE1-PRO2", "psi PRO2"}),
        (PRO, False, {"psi PRO2"}),
    ],
)
def test_torsions_that_are_biased(structure, omega, names):
    topology, positions = load_structure(structure)
    found = find_torsions(topology, omega)
    assert set(found.names) == names
    frame = mdtraj.Trajectory(positions[None], mdtraj.Topology.from_openmm(topology))
    np.testing.assert_allclose(dihedrals(positions, found.atoms), found.compute(frame)[0], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- exploration


def test_it_leaves_the_basin_and_is_made_once(tmp_path):
    settings = ExploreSettings(length=30, ways=("torsions",))
    found = explore([spec()], settings, tmp_path / "a")
    names = ["all torsions from ala2-c7eq", "phi ALA2 from ala2-c7eq", "psi ALA2 from ala2-c7eq"]
    assert [one.name for one in found] == names
    phi = mdtraj.compute_phi(found[0].trajectory(mdtraj.load(ALA2).topology))[1][:, 0]
    assert ((phi > 0.5) & (phi < 2)).any()  # unbiased it takes nanoseconds
    assert found[0].frame_interval == 1.0 and found[0].bias.shape == (30,) and np.ptp(found[0].bias) > 5
    written = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    calls = []
    again = explore([spec()], settings, tmp_path / "a", progress=lambda *call: calls.append(call))
    assert calls == [("exploring", 3, 3)] and {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == written
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
    with pytest.raises(GeomGNNError, match="setting barrier: it was 80"):
        explore([spec()], ExploreSettings(length=30, barrier=50, ways=("torsions",)), tmp_path / "a")


def test_pieces_do_not_depend_on_what_else_is_made_nor_where(tmp_path):
    explore([spec()], ExploreSettings(**SHORT), tmp_path / "one")
    explore([spec(), spec(str(DATA / "ala2-c7ax.pdb"))], ExploreSettings(**SHORT), tmp_path / "two", processes=2)
    one, two = (sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("one", "two"))
    assert len(two) == 2 * len(one) and set(one) < set(two)
    for name in one:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_piece_without_its_description_is_made_again(tmp_path):
    explore([spec()], ExploreSettings(**SHORT), tmp_path)
    piece = tmp_path / "torsions.psi-ALA2.ala2-c7eq.json"
    before = piece.read_bytes()
    piece.unlink()
    (tmp_path / "torsions.psi-ALA2.ala2-c7eq.dcd").write_bytes(b"half")
    explore([spec()], ExploreSettings(**SHORT), tmp_path)
    assert piece.read_bytes() == before


def test_a_piece_that_blows_up_keeps_what_it_had(tmp_path):
    settings = ExploreSettings(length=20, frame_interval=0.05, ways=("torsions",))
    found = explore([spec(timestep=0.006)], settings, tmp_path)
    assert all("It blew up before" in one.notes[0] and "shorter than 0.006 ps" in one.notes[0] for one in found)
    assert 0 < sum(map(len, found)) < 1200 and all(np.isfinite(one.positions).all() for one in found)


def test_refusals(tmp_path):
    with pytest.raises(GeomGNNError, match="Did you mean 'torsions'"):
        explore([spec()], ExploreSettings(ways=("torsion",)), tmp_path)
    with pytest.raises(GeomGNNError, match="no structure to explore from"):
        explore([], ExploreSettings(), tmp_path)
    with pytest.raises(GeomGNNError, match="there would be no frame"):
        ExploreSettings(length=1, frame_interval=2)
    assert not list(tmp_path.iterdir())


def test_settings_know_the_ways():
    assert exploration.WAYS == tuple(WAYS)
    section = exploration.ExploreSection(length="50 ps", ways="torsions")
    assert section.settings(7) == ExploreSettings(ways=("torsions",), length=50.0, seed=7)


def test_conformers_are_minima_of_the_same_stereoisomer(tmp_path):
    """Of D-proline where the start is that; and cis is among them."""
    pytest.importorskip("rdkit")
    positions = load_structure(PRO)[1]
    for number, start in enumerate((positions, positions * [1, 1, -1])):
        settings = ExploreSettings(ways=("conformers",), conformers=16)
        (found,) = explore([spec(PRO, positions=start)], settings, tmp_path / str(number))
        assert found.frame_interval is None and len(found) == 16
        topology = load_structure(PRO)[0]
        assert Guard(topology, start).check(found.positions).good.all()
        assert not Guard(topology, -start).check(found.positions).good.any()
        omega = find_torsions(topology).compute(found.trajectory(mdtraj.load(PRO).topology))[:, 0]
        assert {"cis", "trans"} == {"cis" if abs(angle) < 0.6 else "trans" for angle in omega}


@pytest.mark.skipif(not hasattr(app, "ExpandedEnsembleSampler"), reason="OpenMM 8.6 has it")
def test_tempering_visits_temperatures_and_says_of_which_a_frame_is(tmp_path):
    settings = ExploreSettings(ways=("tempering",), length=40, frame_interval=0.2)
    found = explore([spec()], settings, tmp_path / "a")
    temperatures = [one.temperature for one in found]
    assert temperatures == sorted(set(temperatures)) and temperatures[0] == 300.0 and 350 < temperatures[-1] <= 600
    assert sum(map(len, found)) == 200 and all(one.frame_interval is None for one in found)
    again = explore([spec()], settings, tmp_path / "b")
    np.testing.assert_array_equal(found[0].positions, again[0].positions)
    # hotter is more strained: bonds of heavy atoms vary more
    topology = mdtraj.load(ALA2).topology
    pairs = [(a.index, b.index) for a, b in topology.bonds if a.element.symbol != "H" and b.element.symbol != "H"]
    cold, hot = (
        mdtraj.compute_distances(one.trajectory(topology), pairs).var(axis=0).mean() for one in (found[0], found[-1])
    )
    assert hot > 1.2 * cold


def test_opes_explores_the_cv_so_far(tmp_path, cv_file):
    settings = ExploreSettings(ways=("opes",), length=8, frame_interval=0.5, cv=str(cv_file), sigma=(0.05, 0.05))
    (found,) = explore([spec(every=2)], settings, tmp_path / "a")
    assert (found.name, len(found), found.frame_interval) == ("OPES_EXPLORE from ala2-c7eq", 16, 0.5)
    assert found.bias.min() > -80 and np.ptp(found.bias) > 1.0
    (again,) = explore([spec(every=2)], settings, tmp_path / "b")
    np.testing.assert_array_equal(found.positions, again.positions)
    with pytest.raises(GeomGNNError, match="There is no CV yet"):
        explore([spec()], ExploreSettings(ways=("opes",)), tmp_path / "c")


def test_what_fits(tmp_path):
    pytest.importorskip("rdkit")
    (molecule,) = _molecules([spec(ALA3)])
    assert choose_ways(molecule, ExploreSettings()) == ("torsions", "conformers")
    assert [piece.name for piece in torsions.pieces(molecule, ExploreSettings())] == ["all torsions"]
    assert len(torsions.pieces(molecule, ExploreSettings(in_turn=True))) == 7
    # twice the temperature needs about as many steps as the energy fluctuates more slowly
    levels = tempering.temperatures(molecule)
    assert levels[0] == 300.0 and levels[-1] == pytest.approx(600.0) and 5 <= len(levels) <= 8
    large = replace(molecule, degrees_of_freedom=30_000)
    assert len(tempering.temperatures(large)) == 12 and tempering.temperatures(large)[-1] < 350
    assert "must be above the 300 K" in tempering.why_not(molecule, ExploreSettings(highest_temperature=200))


# --------------------------------------------------------------------------------------------------------------- guard


def swapped(positions, atoms):
    """The positions with two substituents of alanine's C-alpha exchanged."""
    names = [atom.name for atom in atoms]
    centre, one, other = (names.index(name) for name in ("CA", "HA", "CB"))
    result = positions.copy()
    for here, there in ((one, other), (other, one)):
        arm = positions[there] - positions[centre]
        result[here] = positions[centre] + arm * np.linalg.norm(positions[here] - positions[centre]) / np.linalg.norm(arm)
    return result


def test_inverted_centres_and_broken_bonds_are_seen(tmp_path):
    topology, positions = load_structure(ALA2)
    atoms = list(topology.atoms())
    mirror = positions * [1, 1, -1]
    torn = positions.copy()
    torn[0] += 0.2
    guard = Guard(topology, positions)
    verdict = guard.check(np.array([positions, mirror, torn, swapped(positions, atoms)]))
    assert verdict.good.tolist()[:3] == [True, False, False] and not verdict.good[3]
    assert any("stereocentre CA of residue 2 is inverted" in note for note in verdict.notes)
    assert any("ACE1-C" in note and "broken" in note for note in verdict.notes)
    # hydrogens of methyl groups are alike: turning them inverts nothing
    noisy = positions + np.random.default_rng(0).normal(scale=0.003, size=(50, *positions.shape))
    assert guard.check(noisy).good.all()


def test_a_trajectory_ends_where_frames_are_left_out(tmp_path):
    from openmm_geomgnn.sampling.explore.base import Made

    topology, positions = load_structure(ALA2)
    frames = np.array([positions] * 8)
    frames[3] *= [1, 1, -1]
    made = Made(frames, None, 0.5, np.arange(8.0), 300.0, 301.0)
    piece = PieceFiles(tmp_path, "torsions", "phi ALA2", "start")
    topology.setPeriodicBoxVectors(None)
    piece.write({"way": "torsions"}, topology, made, Guard(topology, positions).check(frames))
    first, second = piece.read()
    assert (len(first), len(second)) == (3, 4) and second.bias.tolist() == [4, 5, 6, 7]
    assert "In 1 of 8 frames the stereocentre" in first.notes[0] and not second.notes


def test_water_is_no_molecule_to_guard():
    modeller = app.Modeller(*(lambda file: (file.topology, file.positions))(app.PDBFile(ALA2)))
    modeller.addSolvent(app.ForceField("amber14-all.xml", "amber14/tip3pfb.xml"), numAdded=5)
    positions = np.array(modeller.positions._value)
    far = positions.copy()
    far[-3] += 1.0  # an atom of water torn away, as a box may
    assert Guard(modeller.topology, positions).check(far[None]).good.all()
