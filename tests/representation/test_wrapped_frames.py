"""Frames that the periodic box has torn apart: a complex is learned, evaluated and reported on as a whole."""

import mdtraj
import numpy as np
import openmm
import pytest
from force_systems import CELLS
from molecules import ALA2, random_cv
from openmm import app, unit

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cli import results
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli.names import TOPOLOGY
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.outputs import TrajectoryWriter, read_dcd
from openmm_geomgnn.sampling.systems import SystemSettings, build_system

pytestmark = pytest.mark.filterwarnings("ignore:dimer.yaml")  # one structure will do

BOX = 2.4  # nm
PROTOCOL = """
system: {structures: [dimer.pdb], forcefield: [amber14-all.xml], periodic: true, nonbonded_cutoff: 1, platform: CPU}
unbiased: {length: 0.4 ps, frame_interval: 0.04 ps, equilibration: 0 ps}
cv: {lag: 0.04 ps, pca: 5}
run: {walkers: 1}
"""


@pytest.fixture(scope="module")
def dimer(tmp_path_factory):
    """Two molecules side by side across a face of the box: the protocol, and its unbiased frames as training data."""
    folder = tmp_path_factory.mktemp("dimer")
    one = app.PDBFile(str(ALA2))
    positions = one.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    positions = positions - positions.mean(axis=0) + [0.2, 1.2, 1.2]
    both = app.Modeller(one.topology, positions * unit.nanometer)
    both.add(one.topology, (positions - [0.5, 0, 0]) * unit.nanometer)
    both.topology.setUnitCellDimensions(openmm.Vec3(BOX, BOX, BOX) * unit.nanometer)
    with open(folder / "dimer.pdb", "w") as file:
        app.PDBFile.writeFile(both.topology, both.positions, file)
    (folder / "dimer.yaml").write_text(PROTOCOL)
    protocol = load_protocol(folder / "dimer.yaml", {"output": str(folder / "run")})
    protocol.output.mkdir()
    (protocol.output / TOPOLOGY).write_bytes((folder / "dimer.pdb").read_bytes())
    (trajectory,) = workflow._unbiased(protocol)
    return protocol, trajectory


def live(force, protocol, trajectory):
    """The CV (F, d) as a simulation of the protocol's System has it at the positions of the frames."""
    topology = app.PDBFile(str(protocol.output / TOPOLOGY)).topology
    system = build_system(topology, SystemSettings(("amber14-all.xml",), periodic=True, nonbonded_cutoff=1.0))
    handle = force.addToSystem(system)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    values = []
    for xyz in trajectory.xyz:
        context.setPositions(xyz.astype(np.float64))
        values.append(handle.getValue(context)[0])
    return np.array(values)


def test_training_data_are_whole(dimer):
    """What the frames of `geomgnn run` give offline is what the live CV had in the same conformation."""
    protocol, trajectory = dimer
    apart = [np.linalg.norm(xyz[:22].mean(axis=0) - xyz[22:].mean(axis=0)) for xyz in trajectory.xyz]
    assert len(apart) == 10 and min(apart) > 1.5  # the frames are torn indeed
    force = GeomGNNCV(random_cv(trajectory.topology, scale=0.2), trajectory.topology, engine="eager", failures=None)
    pos = force.bound.molecule.positions(trajectory).numpy()
    half = len(force.atoms) // 2
    assert np.linalg.norm(pos[:, :half].mean(axis=1) - pos[:, half:].mean(axis=1), axis=1).max() < 8.0  # angstrom
    expected = live(force, protocol, trajectory)
    np.testing.assert_allclose(force.compute(trajectory), expected, atol=1e-4)
    # what is torn is not what is whole: the test would see it
    assert np.abs(force.compute(trajectory.xyz) - expected).min() > 1e-2
    # arrays take their boxes along
    np.testing.assert_allclose(force.compute(trajectory.xyz, boxes=trajectory.unitcell_vectors), expected, atol=1e-4)
    np.testing.assert_allclose(force.compute(trajectory.xyz, boxes=BOX * np.eye(3)), expected, atol=1e-4)


def test_boxes_that_are_none(dimer):
    _, trajectory = dimer
    bound = random_cv(trajectory.topology).bind(trajectory.topology, engine="eager")
    box = BOX * np.eye(3)
    with pytest.raises(GeomGNNError, match=r"shape \(9, 3, 3\) do not fit 10 frames"):
        bound.compute(trajectory.xyz, boxes=np.tile(box, (9, 1, 1)))
    for wrong in (box + [[0, 1, 0], [0, 0, 0], [0, 0, 0]], -box, np.nan * box):
        with pytest.raises(GeomGNNError, match="boxes are not those of OpenMM"):
            bound.compute(trajectory.xyz, boxes=wrong)
    with pytest.raises(GeomGNNError, match="boxes of its own"):
        bound.compute(trajectory, boxes=box)


@pytest.mark.parametrize("cell", CELLS)
def test_dcd_with_boxes(tmp_path, cell):
    """The box of every frame, as it was written, and as mdtraj reads it."""
    topology = app.PDBFile(str(ALA2)).topology
    topology.setPeriodicBoxVectors(CELLS[cell] * unit.nanometer)
    rng = np.random.default_rng(1)
    frames, boxes = rng.normal(size=(3, 22, 3)).astype(np.float32), CELLS[cell] * np.array([1.0, 1.1, 0.9])[:, None, None]
    path = tmp_path / "trajectory.0.dcd"
    with TrajectoryWriter(path, topology, 0.002, 10) as writer:
        writer.write(frames, boxes)
    found = read_dcd(path)
    np.testing.assert_allclose(found.xyz, frames, rtol=1e-6)
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-12)
    trajectory = found.trajectory(mdtraj.Topology.from_openmm(topology), times=[0.02, 0.04, 0.06])
    np.testing.assert_allclose(trajectory.unitcell_vectors, boxes, atol=1e-6)
    np.testing.assert_allclose(trajectory.time, [0.02, 0.04, 0.06], rtol=1e-6)


def test_damaged_dcd(tmp_path):
    """Frames that the header counts and the file lacks are missed, and so are those that are not what they were."""
    path, damaged = tmp_path / "whole.dcd", tmp_path / "damaged.dcd"
    with TrajectoryWriter(path, app.PDBFile(str(ALA2)).topology, 0.002, 10) as writer:
        writer.write(np.zeros((4, 22, 3)))
    content = path.read_bytes()
    assert read_dcd(path).boxes is None
    size = 3 * (8 + 4 * 22)
    for cut, says in (
        (content[:-size], "counts 4 frames, but the file holds 3:"),
        (content[:-1], "counts 4 frames, but the file holds 3 and a part of another"),
        (content + content[-size:], "counts 4 frames, but the file holds 5:"),
        (content[: -2 * size] + bytes(4) + content[-2 * size + 4 :], "damaged from frame 2 on"),
    ):
        damaged.write_bytes(cut)
        with pytest.raises(GeomGNNError, match=says):
            read_dcd(damaged)


def test_the_report_reads_the_same(dimer):
    protocol, trajectory = dimer
    (path,) = (protocol.output / "unbiased").glob("*.dcd")
    again = results._frames(path, trajectory.topology)
    np.testing.assert_array_equal(again.xyz, trajectory.xyz)
    np.testing.assert_allclose(again.unitcell_vectors, BOX * np.tile(np.eye(3), (10, 1, 1)), atol=1e-6)
    loaded = mdtraj.load(str(path), top=trajectory.topology)
    np.testing.assert_allclose(again.unitcell_vectors, loaded.unitcell_vectors, atol=1e-6)
