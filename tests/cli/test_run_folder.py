"""What `geomgnn run` makes of the folder that it finds: a run to go on with, one of another protocol, somebody else's."""

import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finished_run import COMMAND, contents, not_biased_yet
from protocol_texts import TINY

from openmm_geomgnn.cli import molecule
from openmm_geomgnn.cli import report as reporting
from openmm_geomgnn.cli import run as workflow
from openmm_geomgnn.cli import run_folder as folders
from openmm_geomgnn.cli.provenance import current_cv
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation import shipped
from openmm_geomgnn.representation.encoder import Encoder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:tiny.yaml")]  # doubtful settings are meant here


def prepare(protocol, overwrite=False, source=None):
    with folders.prepare_output_folder(protocol, overwrite, source):
        folders.settle(protocol)


class TestFolder:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"bias__barrier": 30}, "bias.barrier"),
            ({"seed": 2, "run__every": 2}, "run.every, seed differ"),
            ({"cv__softening": 0.1}, "cv.softening"),
            ({"system__structures": ["ala2-c7eq.pdb"]}, "system.structures"),
        ],
    )
    def test_a_changed_protocol_is_refused(self, changes, named, load, copied):
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"another protocol: .*{named}.*--overwrite"):
            prepare(load(**changes))
        assert contents(copied) == before

    @pytest.mark.parametrize(
        "changes",
        [
            {"run__length": 20, "unbiased__comparison_length": None, "run__checkpoint_interval": 5},
            {"analysis": {"discard": 0.5}},
        ],
    )
    def test_what_may_change(self, changes, load, copied):
        protocol = load(**changes)
        prepare(protocol)
        assert load_protocol(copied / "protocol.yaml") == protocol

    def test_auto_is_what_a_run_began_with(self, load, copied):
        begun = load()
        assert begun.run.every == 3
        prepare(folders.as_begun(load(run__every="auto")))
        assert load_protocol(copied / "protocol.yaml") == begun
        with folders.prepare_output_folder(load(run__every="auto")):
            pass  # also where rounds were biased, before the biased run
        not_biased_yet(copied)
        assert folders.as_begun(load(run__every="auto")).run.every == "auto"

    def test_what_is_not_used_yet_may_change(self, load, copied):
        """The advice that a fit or a stiff CV gives can be followed without losing the training data."""
        not_biased_yet(copied)
        prepare(load(run__every=1, bias__barrier=20, cv__softening=0.1))
        with pytest.raises(GeomGNNError, match="system.temperature, unbiased.frame_interval differ"):
            prepare(load(system__temperature=310, unbiased__frame_interval=0.4))
        shutil.rmtree(copied / "unbiased")
        prepare(load(system__temperature=310))

    def test_overwrite_moves_all_aside(self, load, copied):
        (copied / "notes.txt").write_text("mine")
        for number in (1, 2):
            before, aside = contents(copied), copied.with_name(f"copy.previous-{number}")
            with pytest.warns(UserWarning, match=f"{copied} is now {aside}"):
                prepare(load(seed=5), overwrite=True)
            assert contents(aside) == before
            assert sorted(path.name for path in copied.iterdir()) == ["protocol.yaml", "topology.pdb"]
        prepare(load(seed=5), overwrite=False)

    @pytest.mark.parametrize("what", ["structure", "force field", "CV", "encoder", "reference", "protocol"])
    def test_overwrite_keeps_what_is_needed(self, what, load, copied):
        structures = load().system.structures
        mine = copied / "mine"
        mine.mkdir()
        shutil.copy(structures[0], mine / "a.pdb")
        shutil.copy(folders.__file__, mine / "tiny.yaml")
        shutil.copy(shipped.DATA / "et-64.safetensors", mine)
        (mine / "a.xml").write_text("<ForceField/>")
        changes, source, named = {
            "structure": ({"system__structures": [str(mine / "a.pdb"), str(structures[1])]}, None, "mine/a.pdb"),
            "force field": ({"system__forcefield": ["amber14-all.xml", str(mine / "a.xml")]}, None, "mine/a.xml"),
            "CV": ({"cv": {"file": str(copied / "cv.safetensors")}}, None, "cv.safetensors"),
            "encoder": ({"cv__encoder": str(mine / "et-64.safetensors")}, None, "mine/et-64.safetensors"),
            "reference": ({"cv__window": "space", "cv__reference": str(mine / "a.pdb")}, None, "mine/a.pdb"),
            "protocol": ({}, mine / "tiny.yaml", "mine/tiny.yaml"),
        }[what]
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"would move {copied} aside, but .* needs {copied / named} in it. Copy that"):
            prepare(load(**changes), overwrite=True, source=source)
        assert contents(copied) == before and not list(copied.parent.glob("*.previous-*"))

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_killed_while_it_moves_things_aside(self, moment, load, copied, protocol_file):
        before = contents(copied)
        program = (
            "import os, signal, sys\n"
            "rename = os.rename\n"
            "def killed(old, new):\n"
            "    if sys.argv.pop(1) == 'after': rename(old, new)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "os.rename = killed\n"
            "from openmm_geomgnn.cli.settings.yaml_files import load_protocol\n"
            "from openmm_geomgnn.cli.run_folder import prepare_output_folder\n"
            "with prepare_output_folder(load_protocol(sys.argv[2], {'output': sys.argv[3]}), overwrite=True): pass\n"
        )
        done = subprocess.run([sys.executable, "-c", program, moment, str(protocol_file), str(copied)])
        assert done.returncode == -signal.SIGKILL
        aside = copied.with_name("copy.previous-1")
        there = contents(aside if moment == "after" else copied)
        there.pop(Path(".lock"))
        assert there == before
        # and the command can be given again
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare(load(seed=5), overwrite=True)
        assert {path: content for path, content in contents(aside).items() if path.name != ".lock"} == before

    def test_killed_before_the_first_file(self, load, tmp_path):
        """What `atomic_write` leaves is no folder of somebody else's."""
        folder = tmp_path / "new"
        folder.mkdir()
        (folder / ".protocol.yaml.temporary-abcd_123.yaml").touch()
        (folder / ".lock").touch()
        prepare(load(output=str(folder)))
        assert sorted(path.name for path in folder.iterdir()) == ["protocol.yaml", "topology.pdb"]

    def test_folders_of_others_are_left_alone(self, load, copied, tmp_path):
        # not a run's: a protocol of the user's own that happens to have this name
        for name, text in (("notes.txt", "mine"), ("protocol.yaml", TINY)):
            folder = tmp_path / name.split(".")[0]
            folder.mkdir()
            (folder / name).write_text(text)
            for overwrite in (False, True):
                with pytest.raises(GeomGNNError, match="not empty and was not made by"):
                    prepare(load(output=str(folder)), overwrite)
            assert [path.read_text() for path in folder.iterdir()] == [text]
        with pytest.raises(GeomGNNError, match="is a file.*another output"):
            prepare(load(output=str(tmp_path / "notes" / "notes.txt")))

    def test_structures_of_several_molecules(self, load, tmp_path):
        other = tmp_path / "other.pdb"
        lines = load().system.structures[1].read_text().splitlines(True)
        other.write_text("".join(line for line in lines if " HB1 " not in line and "CONECT" not in line))
        with pytest.raises(GeomGNNError, match="not the same molecule"):
            workflow.run_protocol(load(system__structures=["ala2-c7eq.pdb", str(other)], output=str(tmp_path / "new")))
        assert not (tmp_path / "new").exists()

    def test_structures_in_mmcif(self, load, tmp_path):
        from openmm.app import PDBxFile

        topology, positions = molecule.load_structure(load().system.structures[0])
        with (tmp_path / "a.cif").open("w") as file:
            PDBxFile.writeFile(topology, positions * 10, file)
        prepare(load(system__structures=[str(tmp_path / "a.cif")] * 2, output=str(tmp_path / "new")))
        again, close = molecule.load_structure(tmp_path / "new" / "topology.pdb")
        assert [atom.name for atom in again.atoms()] == [atom.name for atom in topology.atoms()]
        np.testing.assert_allclose(close, positions, atol=1e-4)

    def test_report_of_a_run_that_is_not_done(self, load, copied):
        (copied / "COLVAR").unlink()
        with pytest.raises(GeomGNNError, match="no COLVAR.*geomgnn run"):
            reporting.report(load())

    def test_damaged_cv(self, load, copied, no_simulation):
        content = (copied / "cv.safetensors").read_bytes()
        (copied / "cv.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(GeomGNNError, match="cannot be read as a collective variable.*truncated"):
            workflow.run_protocol(load())


# ------------------------------------------------------------------------------------------- what the CV was made from


@pytest.fixture
def mine(load, copied, tmp_path):
    """Files of the user's own, and settings with which the copied run might have been made of them."""
    structures = load().system.structures
    structure, encoder = tmp_path / "mine.pdb", tmp_path / "mine.safetensors"
    shutil.copy(structures[1], structure)
    shutil.copy(shipped.DATA / "et-64.safetensors", encoder)
    settings = {"system__structures": [str(structures[0]), str(structure)], "cv__encoder": str(encoder)}
    folders.settle(load(**settings))
    return SimpleNamespace(settings=settings, structure=structure, encoder=encoder)


def change_cv(path, **facts):
    """Another CV file, which says something else about itself."""
    cv = CollectiveVariable.load(path)
    cv.training_information.update(facts)
    cv.save(path)


def remark(structure):
    structure.write_text(f"REMARK changed\n{structure.read_text()}")


def change_encoder(path):
    encoder = Encoder.load(path)
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.001)
    encoder.save(path)


class TestProvenance:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda mine, folder: remark(mine.structure), "trajectory.1.dcd belongs to a run with another start positions"),
            (
                lambda mine, folder: (remark(mine.structure), shutil.rmtree(folder / "unbiased")),
                "fitted under other conditions: start positions of the unbiased runs differ",
            ),
            (lambda mine, folder: change_encoder(mine.encoder), "fitted under other conditions: encoder of the fit differ"),
            (lambda mine, folder: change_cv(folder / "cv.safetensors", lag="?"), "another collective variable"),
            (lambda mine, folder: change_cv(folder / "cv.safetensors", rate_300K_per_ps=[500.0]), "too stiff to bias"),
            (lambda mine, folder: (folder / "cv.safetensors").write_bytes(b"x"), "cannot be read as a collective variable"),
            (lambda mine, folder: (folder / "checkpoint.safetensors").unlink(), "COLVAR file, but no checkpoint"),
        ],
        ids=["structure", "structure, unbiased runs gone", "encoder", "CV", "stiffness", "damaged CV", "no checkpoint"],
    )
    def test_nothing_changes_in_a_folder_that_refuses(self, damage, message, load, copied, mine):
        damage(mine, copied)
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=message):
            workflow.run_protocol(load(**mine.settings, run__checkpoint_interval=2))  # there would be something to write
        assert contents(copied) == before

    def test_unbiased_runs_that_have_served_are_not_made_again(self, load, copied, no_simulation, no_report):
        shutil.rmtree(copied / "unbiased")
        workflow.run_protocol(load())

    @pytest.mark.parametrize("changes", [{"seed": 2}, {"system__temperature": 310}])
    def test_a_stale_cv_is_fitted_again(self, changes, load, copied, no_simulation):
        """What determined it has changed, and the runs that it was fitted to are gone."""
        not_biased_yet(copied)
        shutil.rmtree(copied / "unbiased")
        with pytest.raises(AssertionError, match="the unbiased simulation was started"):
            workflow.run_protocol(load(**changes))

    def test_a_cv_of_other_settings_is_moved_aside(self, load, copied, no_simulation):
        not_biased_yet(copied)
        old = (copied / "cv.safetensors").read_bytes()
        with pytest.warns(UserWarning, match="cv.safetensors is now"), pytest.raises(AssertionError, match="the biased"):
            workflow.run_protocol(load(cv__softening=0.1))
        assert CollectiveVariable.load(copied / "cv.safetensors").training_information["softening_ps"] == 0.1
        assert (copied / "cv.safetensors.previous-1").read_bytes() == old

    def test_a_cv_without_a_record(self, load, copied, no_simulation):
        """Versions before did not write down what a CV was made from: runs go on, fits are made again."""
        facts = CollectiveVariable.load(copied / "cv.safetensors")
        record = facts.training_information.pop("made_from")
        facts.save(copied / "cv.safetensors")
        assert current_cv(load(), record) is not None
        not_biased_yet(copied)
        assert current_cv(load(), record) is None

    def test_a_given_cv_is_compared_by_its_content(self, load, copied, tmp_path, no_simulation, no_report):
        given = tmp_path / "given.safetensors"
        shutil.copy(copied / "cv.safetensors", given)
        protocol = load(cv={"file": str(given)})
        folders.settle(protocol)
        workflow.run_protocol(protocol)
        moved = load(cv={"file": shutil.copy(given, tmp_path / "moved.safetensors")})
        workflow.run_protocol(moved)
        # fitted again, under the same name
        change_cv(moved.cv.file, in_basin_spread=[0.2])
        before = contents(copied)
        with pytest.raises(GeomGNNError, match=f"{moved.cv.file} .* is not the CV that .* which is {copied}/cv.safetensors"):
            workflow.run_protocol(moved)
        assert contents(copied) == before
        not_biased_yet(copied)
        with pytest.warns(UserWarning, match="previous-1"), pytest.raises(AssertionError, match="the biased simulation"):
            workflow.run_protocol(moved)
        assert (copied / "cv.safetensors").read_bytes() == moved.cv.file.read_bytes()
        assert (copied / "cv.safetensors.previous-1").read_bytes() == before[Path("cv.safetensors")]

    def test_a_second_process(self, load, copied, no_simulation):
        program = f"from openmm_geomgnn.locks import locked\nwith locked({str(copied)!r}): print(flush=True), input()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, text=True) as process:
            process.stdout.readline()
            before = contents(copied)
            for overwrite in (False, True):
                with pytest.raises(GeomGNNError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
                    workflow.run_protocol(load(), overwrite)
            done = subprocess.run([*COMMAND, "report", str(copied)], capture_output=True, text=True)
            assert done.returncode == 1 and f"in use by process {process.pid} on" in done.stderr
            assert contents(copied) == before
            process.communicate("\n")


# ------------------------------------------------------------------------------------------------ before and between


class TestAnalysisIsCheckedFirst:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"analysis": {"torsions": {"omega": "auto"}, "cores": {"along": "omega", "a": [-3, -2], "b": [0, 1]}}},
                "no torsion omega",
            ),
            ({"analysis": {"torsions": {"phi": "auto", "psi": ["ALA2-N", "ALA2-CA", "ALA2-C", "GLY3-N"]}}}, "GLY3-N"),
            ({"analysis": {"torsions": {"phi": "auto", "psi": [4, 6, 8, 22]}}}, "atom 22.*from 0 to 21"),
            ({"analysis": {"torsions": {"chi1": "auto"}}}, "no torsion chi1"),
            ({"run__frame_interval": 10}, "too short for 2 frames"),
        ],
    )
    def test_before_any_work(self, changes, message, load, copied, no_simulation):
        with pytest.raises(GeomGNNError, match=message):
            workflow.run_protocol(load(**changes))
