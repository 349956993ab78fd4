"""From a structure to a System: the same energies by the faster force, and errors that say what to do."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.systems import (
    SystemSettings,
    build_system,
    choose_platform,
    degrees_of_freedom,
    load_structure,
    system_topology,
)

ALA2 = files("openmm_geomgnn.data") / "ala2-c7eq.pdb"
C7AX = files("openmm_geomgnn.data") / "ala2-c7ax.pdb"


def evaluate(system, positions):
    """Energy (kJ/mol) and forces (N, 3) (kJ/mol/nm)."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(positions)
    state = context.getState(getEnergy=True, getForces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def force_names(system):
    return {type(force).__name__ for force in system.getForces()}


# ------------------------------------------------------------------------------------------------------------- structures


def test_the_shipped_structures_lie_in_their_basins():
    from mdtraj import Topology, Trajectory, compute_phi, compute_psi

    for path, phi, psi in ((ALA2, -80, 75), (C7AX, 62, -60)):
        topology, positions = load_structure(path)
        assert positions.shape == (22, 3) and positions.dtype == np.float64
        frame = Trajectory(positions[None], Topology.from_openmm(topology))
        angles = [float(np.degrees(compute(frame)[1][0, 0])) for compute in (compute_phi, compute_psi)]
        np.testing.assert_allclose(angles, (phi, psi), atol=1)
        # L-alanine in both, with trans amides, and nothing strained: the energies of the two are near one another
        n, ca, c, cb = positions[[6, 8, 10, 12]]
        assert np.dot(n - ca, np.cross(c - ca, cb - ca)) > 0
        energy, forces = evaluate(build_system(topology), positions)
        assert -145 < energy < -120 and np.abs(forces).max() < 500


def test_pdbx_is_read_too(tmp_path):
    topology, positions = load_structure(ALA2)
    with (tmp_path / "ala2.cif").open("w") as file:
        app.PDBxFile.writeFile(topology, positions * unit.nanometer, file)
    again, same = load_structure(tmp_path / "ala2.cif")
    assert again.getNumAtoms() == 22 and again.getNumBonds() == topology.getNumBonds()
    np.testing.assert_allclose(same, positions, atol=1e-4)


def test_structures_that_cannot_be_read(tmp_path):
    with pytest.raises(GeomGNNError, match="no structure file"):
        load_structure(tmp_path / "missing.pdb")
    (tmp_path / "text.pdb").write_text("no atoms here\n")
    with pytest.raises(GeomGNNError, match="text.pdb.*(no atoms|cannot be read)"):
        load_structure(tmp_path / "text.pdb")
    (tmp_path / "letters.pdb").write_text(ALA2.read_text().replace("3.013", "3.0x3"))
    with pytest.raises(GeomGNNError, match="letters.pdb.*(cannot be read|not finite)"):
        load_structure(tmp_path / "letters.pdb")
    ion = "HETATM    1 NA    NA A   1       0.000   0.000   0.000  1.00  0.00          NA\n"
    (tmp_path / "ion.pdb").write_text(ion)
    with pytest.raises(GeomGNNError, match="ion.pdb holds a single atom"):
        load_structure(tmp_path / "ion.pdb")
    (tmp_path / "model.xyz").write_text("1\n\nH 0 0 0\n")
    with pytest.raises(GeomGNNError, match="neither PDB nor PDBx"):
        load_structure(tmp_path / "model.xyz")


# ---------------------------------------------------------------------------------------------------------------- systems


@pytest.mark.parametrize("path", [ALA2, C7AX], ids=["c7eq", "c7ax"])
@pytest.mark.parametrize("cutoff", [None, 0.8])
def test_the_native_implicit_solvent_is_the_same(path, cutoff):
    topology, positions = load_structure(path)
    native = build_system(topology, SystemSettings(nonbonded_cutoff=cutoff))
    custom = build_system(topology, SystemSettings(nonbonded_cutoff=cutoff, native_obc=False))
    assert "GBSAOBCForce" in force_names(native) and "CustomGBForce" not in force_names(native)
    assert "CustomGBForce" in force_names(custom)
    (energy, forces), (expected_energy, expected_forces) = evaluate(native, positions), evaluate(custom, positions)
    assert energy == pytest.approx(expected_energy, abs=1e-3)
    np.testing.assert_allclose(forces, expected_forces, atol=1e-3)


def test_the_native_implicit_solvent_of_a_charged_peptide(shared_data):
    """Charged termini, an indole and aliphatic side chains: other radii and screens than alanine has."""
    topology, positions = load_structure(shared_data / "structures" / "WLALL_zw.pdb")
    (energy, forces), (expected_energy, expected_forces) = (
        evaluate(build_system(topology, SystemSettings(native_obc=native)), positions) for native in (True, False)
    )
    assert energy == pytest.approx(expected_energy, abs=1e-3)
    np.testing.assert_allclose(forces, expected_forces, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["obc1", "gbn2", "hct"])
def test_other_implicit_solvents_stay_as_they_are(model):
    topology, positions = load_structure(ALA2)
    settings = SystemSettings(forcefield=("amber14-all.xml", f"implicit/{model}.xml"))
    system = build_system(topology, settings)
    assert "CustomGBForce" in force_names(system)
    expected = app.ForceField(*settings.forcefield).createSystem(topology, constraints=app.HBonds, hydrogenMass=3)
    assert evaluate(system, positions)[0] == pytest.approx(evaluate(expected, positions)[0], abs=1e-6)


def test_salt_or_another_dielectric_is_respected():
    """Only OBC2 without salt can be had natively; its dielectric constant is taken over."""
    from openmm_geomgnn.sampling.systems import _use_native_obc

    topology, positions = load_structure(ALA2)
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    salty = field.createSystem(topology, implicitSolventKappa=1.0)
    _use_native_obc(salty)
    assert "CustomGBForce" in force_names(salty)
    oily = field.createSystem(topology, solventDielectric=4.0, soluteDielectric=2.0)
    expected = evaluate(oily, positions)[0]
    _use_native_obc(oily)
    assert "GBSAOBCForce" in force_names(oily)
    assert evaluate(oily, positions)[0] == pytest.approx(expected, abs=1e-3)
    bare = field.createSystem(topology, sasaMethod=None)
    _use_native_obc(bare)
    assert "CustomGBForce" in force_names(bare)


def test_masses_constraints_and_degrees_of_freedom():
    topology, _ = load_structure(ALA2)
    light = build_system(topology, SystemSettings(constraints=None, hydrogen_mass=None))
    heavy = build_system(topology, SystemSettings(hydrogen_mass="3 amu"))
    masses = [[system.getParticleMass(i)._value for i in range(22)] for system in (light, heavy)]
    assert sum(masses[0]) == pytest.approx(sum(masses[1]))
    assert min(masses[0]) == pytest.approx(1.008, abs=1e-3) and min(masses[1]) == pytest.approx(3.0)
    assert degrees_of_freedom(light) == 66 - 3
    assert degrees_of_freedom(heavy) == 66 - 3 - 12
    light.setParticleMass(0, 0.0)
    assert degrees_of_freedom(light) == 63 - 3


def test_a_box_makes_a_periodic_system():
    topology, positions = load_structure(ALA2)
    topology.setUnitCellDimensions((2.5, 2.5, 2.5) * unit.nanometer)
    implicit = build_system(topology)
    assert not implicit.usesPeriodicBoundaryConditions()
    periodic = build_system(topology, SystemSettings(forcefield=("amber14-all.xml",)))
    (nonbonded,) = (force for force in periodic.getForces() if isinstance(force, openmm.NonbondedForce))
    assert nonbonded.getNonbondedMethod() == openmm.NonbondedForce.PME
    assert nonbonded.getCutoffDistance()._value == pytest.approx(1.0)
    assert not build_system(
        topology, SystemSettings(forcefield="amber14-all.xml", periodic=False)
    ).usesPeriodicBoundaryConditions()
    assert np.isfinite(evaluate(periodic, positions)[0])
    # a box that means nothing does not go into the trajectory
    assert system_topology(topology, periodic).getPeriodicBoxVectors() is not None
    assert system_topology(topology, implicit).getPeriodicBoxVectors() is None
    topology.setUnitCellDimensions((1.0, 1.0, 1.0) * unit.nanometer)
    with pytest.raises(GeomGNNError, match="box is 1, 1, 1 nm.*periodic=False"):
        build_system(topology, SystemSettings(forcefield=("amber14-all.xml",)))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no XML",
        "<ForceField><AtomTypes><Type/></AtomTypes></ForceField>",
        "<ForceField><Script>raise SystemError('never')</Script></ForceField>",
    ],
)
def test_force_fields_that_cannot_be_read(content, tmp_path):
    topology, _ = load_structure(ALA2)
    (tmp_path / "mine.xml").write_text(content)
    with pytest.raises(GeomGNNError, match="mine.xml (cannot be read|from this structure: never)") as error:
        build_system(topology, SystemSettings(("amber14-all.xml", str(tmp_path / "mine.xml"))))
    assert "\n" not in str(error.value)


def test_missing_atoms_are_explained():
    topology, positions = load_structure(ALA2)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    modeller.delete([atom for atom in topology.atoms() if atom.name == "HB1"])
    with pytest.raises(GeomGNNError, match="residue ALA 2 of chain A.*missing 1 H.*addHydrogens.*PDBFixer"):
        build_system(modeller.topology)


def test_a_force_field_that_was_changed_is_read_again(tmp_path):
    topology, _ = load_structure(ALA2)
    mine = tmp_path / "mine.xml"
    mine.write_bytes((Path(app.__file__).parent / "data" / "amber99sb.xml").read_bytes())
    settings = SystemSettings(forcefield=(str(mine),))
    assert build_system(topology, settings).getNumParticles() == 22
    mine.write_text("<ForceField></ForceField>")
    with pytest.raises(GeomGNNError, match="does not recognise residue ACE 1"):
        build_system(topology, settings)


def test_settings_that_make_no_sense():
    topology, _ = load_structure(ALA2)
    for message, changes in {
        "Did you mean 'HBonds'": {"constraints": "hbonds"},
        "hydrogen_mass is -3": {"hydrogen_mass": -3},
        "nonbonded_cutoff": {"nonbonded_cutoff": "10 ps"},
        "No force field": {"forcefield": ()},
    }.items():
        with pytest.raises(GeomGNNError, match=message):
            SystemSettings(**changes)
    with pytest.raises(GeomGNNError, match="no-such-field.xml"):
        build_system(topology, SystemSettings(forcefield="no-such-field.xml"))
    with pytest.raises(GeomGNNError, match="no box"):
        build_system(topology, SystemSettings(periodic=True))


# ------------------------------------------------------------------------------------------------ integrators and platforms


def test_integrators():
    plain = make_integrator(300, 1, 0.002)
    assert isinstance(plain, openmm.LangevinMiddleIntegrator) and plain.getStepSize()._value == 0.002
    assert isinstance(make_integrator(300, 1, 0.002, every=3), openmm.LangevinMiddleIntegrator)
    assert isinstance(make_integrator(300, 1, 0.002, every=1, bias_group=5), openmm.LangevinMiddleIntegrator)
    multiple = make_integrator("300 K", "1/ps", 2 * unit.femtosecond, every=3, bias_group=5, seed=9)
    assert isinstance(multiple, openmm.CustomIntegrator)
    assert multiple.getStepSize()._value == pytest.approx(0.006) and multiple.getRandomNumberSeed() == 9
    # a seed of 0 would be a random one to OpenMM
    assert make_integrator(300, 1, 0.002, seed=0).getRandomNumberSeed() != 0
    for message, arguments in {
        "is it in fs": (300, 1, 2.0),
        "temperature is -1": (-1, 1, 0.002),
        "every is 1.5": (300, 1, 0.002, 1.5),
    }.items():
        with pytest.raises(GeomGNNError, match=message):
            make_integrator(*arguments)


def test_multiple_time_steps_evaluate_the_bias_once():
    calls = []

    def count(state):
        calls.append(state.getStepCount())
        return 0.0, np.zeros((1, 3))

    topology, positions = load_structure(ALA2)
    system = build_system(topology)
    force = openmm.PythonForce(count)
    force.setParticles([0])
    force.setForceGroup(7)
    system.addForce(force)
    integrator = make_integrator(300, 1, 0.002, every=4, bias_group=7)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    integrator.step(20)
    assert len(calls) == 20 and context.getTime()._value == pytest.approx(20 * 0.008)


def test_platforms():
    there = {openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())}
    platform, properties = choose_platform("CPU")
    assert (platform.getName(), properties) == ("CPU", {"Threads": "1"})
    assert choose_platform("CPU", threads=3)[1] == {"Threads": "3"}
    if not there & {"CUDA", "HIP"}:
        assert choose_platform("auto", 22)[0].getName() == "Reference"
        assert choose_platform("auto", 500)[0].getName() == "CPU"
    with pytest.raises(GeomGNNError, match="no OpenMM platform 'Referense'.*CPU.*Did you mean 'Reference'"):
        choose_platform("Referense")
    with pytest.raises(GeomGNNError, match="precision of a platform"):
        choose_platform("Reference", precision="half")
