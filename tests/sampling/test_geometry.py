"""Coordinates that cannot be those of the molecule are refused before anything runs; those that can be are not."""

import warnings
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_geomgnn.cli.first_frames import check_first_frames
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.geometry import check_geometry
from openmm_geomgnn.sampling.plan import prepare
from openmm_geomgnn.sampling.relaxation import hottest_start
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings, choices_made, load_structure
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

ALA2 = files("openmm_geomgnn.data") / "ala2-c7eq.pdb"
VACUUM = SystemSettings(forcefield=("amber14-all.xml",))
WATER = Path(app.__file__).parent / "data" / "tip3p.pdb"


def ala2(change=None):
    topology, positions = load_structure(ALA2)
    return topology, positions if change is None else change(positions)


def written(path, topology, positions):
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, positions * unit.nanometer, file, keepIds=True)
    return path


def twice(apart):
    """Two alanine dipeptides, the second `apart` nm along x."""
    topology, positions = ala2()
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.add(topology, (positions + [apart, 0, 0]) * unit.nanometer)
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def moved(atom, by):
    def change(positions):
        positions[atom] += by
        return positions

    return change


# ---------------------------------------------------------------------------------------------------------------- refused

REFUSED = {
    "has all its 22 atoms in one place": lambda positions: 0 * positions,
    "bonds that are 10 times too short.*multiply the coordinates by 10": lambda positions: positions / 10,
    "bonds that are 10 times too long.*divide the coordinates by 10": lambda positions: positions * 10,
    r"bonds that no molecule has: .*C of NME 3 of chain A and H\d of NME 3 of chain A over (90|89)": moved(18, (90, 0, 0)),
    "bonds that no molecule has: .* over 0.[0-9] A": lambda positions: positions * 0.4,
    "not finite: H3 of ACE 1 of chain A. Check": moved(3, (0, np.nan, 0)),
    r"positions of the shape \(21, 3\) for 22 atoms": lambda positions: positions[1:],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_the_molecule_is_refused(message):
    topology, positions = ala2(REFUSED[message])
    with pytest.raises(GeomGNNError, match=message) as error:
        check_geometry(topology, positions, "a.pdb")
    assert str(error.value).startswith("a.pdb ") and "\n" not in str(error.value)


def test_atoms_that_are_there_twice_and_molecules_out_of_reach():
    with pytest.raises(GeomGNNError, match="22 pairs of atoms in one place, closer than 0.1 A, such as"):
        check_geometry(*twice(0.001))
    with pytest.raises(GeomGNNError, match="has 22 of its 44 atoms more than 20 nm from all others"):
        check_geometry(*twice(90))
    (remark,) = check_geometry(*twice(12))
    assert "22 of its 44 atoms more than 5 nm" in remark and "without a box" in remark
    assert check_geometry(*twice(4)) == []
    # with a box they are never far from one another
    topology, positions = twice(12)
    topology.setUnitCellDimensions((3, 3, 3) * unit.nanometer)
    assert check_geometry(topology, positions) == []


def test_a_missing_residue_is_a_gap_in_the_chain(shared_data, tmp_path):
    """OpenMM bonds the residues on both sides of it over whatever distance there is."""
    topology, positions = load_structure(shared_data / "structures" / "CLN025_ready.pdb")
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.topology.setPeriodicBoxVectors(None)
    modeller.delete([residue for residue in topology.residues() if residue.id == "5"])
    path = written(tmp_path / "gap.pdb", modeller.topology, modeller.positions.value_in_unit(unit.nanometer))
    message = "gap.pdb has a gap in its chain.*C of PRO 4 of chain A and N of THR 6 of chain A over [345].*PDBFixer"
    with pytest.raises(GeomGNNError, match=message):
        prepare([WalkerSpec(path, VACUUM)])


def test_a_run_looks_at_every_start(tmp_path):
    topology, positions = ala2()
    good, far = written(tmp_path / "a.pdb", topology, positions), positions.copy()
    far[12] += (0, 90, 0)
    bad = written(tmp_path / "b.pdb", topology, far)
    prepare([WalkerSpec(good)])
    with pytest.raises(GeomGNNError, match="b.pdb has bonds that no molecule has: CB of ALA 2 .* HB. of ALA 2 .* over 90"):
        prepare([WalkerSpec(good), WalkerSpec(bad, index=1)])
    with pytest.raises(GeomGNNError, match="The start of walker 1 has bonds that no molecule has"):
        prepare([WalkerSpec(good), WalkerSpec(good, index=1, positions=far)])


# --------------------------------------------------------------------------------------------------------------- remarks


def test_what_is_strange_but_possible_is_said():
    topology, positions = ala2(lambda positions: positions * 1.5)
    (remark,) = check_geometry(topology, positions, "a.pdb")
    assert remark.startswith("a.pdb has strained bonds: ") and "and 18 more" in remark
    # the second molecule 0.7 A beside the first
    remarks = check_geometry(*twice(0.07))
    assert any("not bonded but as close as if they were" in remark and " at 0." in remark for remark in remarks)
    # two hydrogens of a methyl group in one place, as programs that add hydrogens leave them, have no energy
    topology, positions = ala2()
    positions[14] = positions[13] + 1e-4
    (remark,) = check_geometry(topology, positions)
    assert "HB1 of ALA 2 of chain A and HB2 of ALA 2 of chain A at 0.00 A" in remark


def test_inverted_centres(shared_data):
    topology, positions = load_structure(shared_data / "structures" / "2F4K_ready.pdb")
    assert check_geometry(topology, positions) == []
    (remark,) = check_geometry(topology, positions * [1, 1, -1], "a.pdb")
    assert remark.startswith("a.pdb is the mirror image of the molecule that its residue names tell: all its 3")
    atoms = {(atom.residue.id, atom.name): atom.index for atom in topology.atoms()}
    # hydrogen and side chain of a leucine's CA change places: along the old C-H bond
    number = next(residue.id for residue in topology.residues() if residue.name == "ALA")
    ca, cb, ha = (atoms[number, name] for name in ("CA", "CB", "HA"))
    side = [atoms[number, name] for name in ("CB", "HB1", "HB2", "HB3")]
    turned = positions.copy()
    axis = (positions[cb] - positions[ca]) / np.linalg.norm(positions[cb] - positions[ca])
    axis = axis + (positions[ha] - positions[ca]) / np.linalg.norm(positions[ha] - positions[ca])
    axis /= np.linalg.norm(axis)
    for k in (*side, ha):
        away = positions[k] - positions[ca]
        turned[k] = positions[ca] + 2 * (away @ axis) * axis - away
    (remark,) = check_geometry(topology, turned, "a.pdb")
    assert f"a.pdb has inverted centres, of D amino acids with the names of L ones: CA of ALA {number} of chain" in remark
    # a D amino acid by its own name is none
    for residue in topology.residues():
        residue.name = "DAL" if residue.id == number else residue.name
    assert check_geometry(topology, turned) == []


def test_models_and_alternate_locations_are_said(tmp_path):
    text = ALA2.read_text()
    atoms = "".join(line for line in text.splitlines(True) if line.startswith(("ATOM", "HETATM")))
    assert choices_made(ALA2) == []
    path = tmp_path / "models.pdb"
    path.write_text("".join(f"MODEL     {k:4d}\n{atoms}ENDMDL\n" for k in (1, 2, 3)) + "END\n")
    assert choices_made(path) == [f"{path} holds 3 models: the first is used."]
    topology, positions = load_structure(path)
    with (tmp_path / "models.cif").open("w") as file:
        app.PDBxFile.writeHeader(topology, file)
        for k in (1, 2):
            app.PDBxFile.writeModel(topology, (positions + k) * unit.nanometer, file, k)
    assert choices_made(tmp_path / "models.cif") == [f"{tmp_path / 'models.cif'} holds 2 models: the first is used."]
    lines = atoms.splitlines(True)
    beta = next(line for line in lines if line[12:16].strip() == "CB")
    lines[lines.index(beta)] = beta[:16] + "A" + beta[17:] + beta[:16] + "B" + beta[17:30] + "   9.000" + beta[38:]
    path.write_text("".join(lines) + "END\n")
    (sentence,) = choices_made(path)
    assert "alternate locations of 1 atoms, the first is A ALA2 CB: of each the one that comes first" in sentence
    np.testing.assert_array_equal(load_structure(path)[1], positions)
    lines = (tmp_path / "models.cif").read_text().splitlines(True)
    rows = [k for k, line in enumerate(lines) if line.startswith(("ATOM", "HETATM")) and line.split()[-1] == "1"]
    row = next(k for k in rows if lines[k].split()[3] == "CB")
    columns = [line.strip().split(".")[1] for line in lines if line.startswith("_atom_site.")]
    fields = lines[row].split()
    for location in "BA":
        fields[columns.index("label_alt_id")] = location
        lines[row] = " ".join(fields) + "\n" + (lines[row] if location == "A" else "")
    (tmp_path / "alternate.cif").write_text("".join(line for line in lines if line.split()[-1] != "2" or len(line) < 40))
    (sentence,) = choices_made(tmp_path / "alternate.cif")
    assert "alternate locations of 1 atoms" in sentence and "CB" in sentence


# ------------------------------------------------------------------------------------------------------- not refused


def test_no_shipped_or_shared_structure_is_refused(shared_data):
    paths = [*(shared_data / "structures").rglob("*.pdb"), *Path(str(files("openmm_geomgnn.data"))).glob("*.pdb")]
    assert len(paths) >= 29
    for path in paths:
        topology, positions = load_structure(path)
        topology.setPeriodicBoxVectors(None)  # most are boxes of crystals
        assert check_geometry(topology, positions, path.name) == [], path


@pytest.mark.parametrize("name", ["tip3p", "swm4ndp", "test"])
def test_liquids_however_the_box_cuts_them(name):
    """Water with and without extra sites, a protein in it; each atom moved into the box by itself."""
    topology, positions = load_structure(WATER.with_name(f"{name}.pdb"))
    box = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    wrapped = positions - np.floor(positions @ np.linalg.inv(box)) @ box
    assert np.abs(wrapped - positions).max() > 1 and check_geometry(topology, wrapped, name) == []
    if name == "tip3p":
        topology.setPeriodicBoxVectors(None)
        with pytest.raises(GeomGNNError, match="needs its box"):
            check_geometry(topology, wrapped, name)


def test_bonds_of_which_nothing_is_known():
    """Hydrogens of a rigid water, beads of a coarse model, virtual sites: no length of such a bond is wrong."""
    element, topology = app.Element.getBySymbol, app.Topology()
    residue = topology.addResidue("HOH", topology.addChain("W"))
    oxygen, first, second, site = (
        topology.addAtom(name, symbol and element(symbol), residue)
        for name, symbol in (("O", "O"), ("H1", "H"), ("H2", "H"), ("M", None))
    )
    for pair in ((oxygen, first), (oxygen, second), (first, second), (oxygen, site)):
        topology.addBond(*pair)
    beads = topology.addChain("B")
    previous = None
    for number in range(3):
        bead = topology.addAtom("CA", element("C"), topology.addResidue("ALA", beads, str(number)))
        if previous is not None:
            topology.addBond(previous, bead)
        previous = bead
    topology.addAtom("NA", element("Na"), topology.addResidue("NA", topology.addChain("I")))
    water = [[0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0], [0, 0, 0]]
    positions = np.array([*water, [1, 0, 0], [1.38, 0, 0], [1.6, 0.3, 0], [0, 0.24, 0]])
    assert check_geometry(topology, positions) == []


# ---------------------------------------------------------------------------------------------------------- trajectories


def test_first_frames_of_trajectories(shared_data, tmp_path):
    """Data that exist may be strange, but not in the wrong unit: mdtraj takes the numbers in a DCD file for angstrom."""
    topology = mdtraj.load(str(ALA2)).topology
    frames = np.tile(mdtraj.load(str(ALA2)).xyz, (3, 1, 1))
    paths = {}
    for name, factor in (("good", 1.0), ("small", 0.1)):
        paths[name] = tmp_path / f"{name}.dcd"
        mdtraj.Trajectory(factor * frames, topology).save_dcd(str(paths[name]))
    box = np.array([1.2, 1.3, 1.4])
    cut = mdtraj.Trajectory(frames - np.floor(frames / box) * box, topology)
    assert np.abs(cut.xyz - frames).max() > 1
    cut.save_dcd(str(tmp_path / "torn.dcd"))
    cut.unitcell_lengths, cut.unitcell_angles = np.tile(box, (3, 1)), np.full((3, 3), 90.0)
    cut.save_dcd(str(tmp_path / "cut.dcd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_first_frames([paths["good"], tmp_path / "cut.dcd"], topology)
        for name in ("ala2_plumed_masterclass", "chignolin"):
            folder = shared_data / "trajectories" / name
            pdb = next(path for path in sorted(folder.rglob("*.pdb")))
            files_ = [path for ending in ("xtc", "dcd") for path in sorted(folder.rglob(f"*.{ending}"))]
            assert files_
            check_first_frames(files_, mdtraj.load(str(pdb)).topology)
    with pytest.warns(UserWarning, match="torn.dcd has bonds that no molecule has.*needs its box"):
        check_first_frames([tmp_path / "torn.dcd"], topology)
    with pytest.raises(GeomGNNError, match="The first frame of .*small.dcd has bonds that are 10 times too short"):
        check_first_frames([paths["good"], paths["small"]], topology)


# ------------------------------------------------------------------------------------------------------- after relaxation


def test_a_start_that_is_not_at_its_temperature_is_stopped(tmp_path):
    """Bonds 15 % too long release 500 kJ/mol, which a weak thermostat does not take up within a picosecond."""
    positions = ala2()[1]
    spec = WalkerSpec(ALA2, VACUUM, platform="Reference", seed=2, friction=0.05, equilibration=1.0)
    strained = replace(spec, minimise=False, positions=positions * 1.15)
    message = r"walker 0 is not at its temperature: over the last 0.5 ps .* the mean is (\d+) K.* for 51 degrees"
    with pytest.raises(GeomGNNError, match=message):
        Runner([strained], None, tmp_path / "hot", 0.1).run()
    Runner([spec], None, tmp_path / "good", 0.1).run()


def test_the_excess_that_a_start_may_have():
    """As documented; and of starts in equilibrium none is refused: means of 2.5 ps of a thermostat with that memory."""
    spec = WalkerSpec(ALA2, friction=1.0)
    assert hottest_start(spec, 2.5, 51) == pytest.approx(1.74, abs=0.02)
    assert hottest_start(spec, 2.5, 2500) == pytest.approx(1.14, abs=0.01)
    rng = np.random.default_rng(1)
    keep, n = np.exp(-0.05), 10_000  # velocities at steps of 0.05 ps, 50 of them
    velocities = rng.normal(size=(n, 51)).astype(np.float32)
    means = np.zeros(n)
    for _ in range(50):
        velocities = keep * velocities + np.sqrt(1 - keep**2) * rng.normal(size=velocities.shape).astype(np.float32)
        means += (velocities**2).mean(axis=1) / 50
    assert 1.3 < means.max() < hottest_start(spec, 2.5, 51)


def test_an_energy_that_is_not_finite_stops_before_the_minimisation(tmp_path):
    """With NaN forces the minimiser would not come back."""
    topology, positions = ala2()
    system = app.ForceField("amber14-all.xml").createSystem(topology)
    broken = openmm.CustomExternalForce("sqrt(-1-x^2)")
    broken.addParticle(0)
    system.addForce(broken)
    spec = WalkerSpec(ALA2, openmm.XmlSerializer.serialize(system), platform="Reference")
    with pytest.raises(GeomGNNError, match="potential energy of walker 0 is not finite at its start"):
        Runner([spec], None, tmp_path, 0.1).run()
