"""Fixtures that several test files share."""

import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

# one thread, here and in every process the tests start: more than the free cores is very slow
torch.set_num_threads(1)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
pytest.register_assert_rewrite("physics", "phi_runs", "protocol_texts", "force_systems", "turning_phi", "doc_pages")

REPOSITORY = Path(__file__).resolve().parent.parent
# each file is run by one process, for its tests share what is slow to make; those that take longest (20 to 60 s) begin, so
# that no process is left alone with one at the end
LONGEST_FIRST = (
    *("test_code_blocks", "test_readout", "test_workflow", "test_run_folder", "test_force_physics"),
    *("test_training", "test_cv", "test_tensornet_numba", "test_fit", "test_runner", "test_distill"),
    *("test_backends", "test_autoload", "test_embed", "test_packaging"),
)


def pytest_collection_modifyitems(items):
    order = {f"{name}.py": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def repository():
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data():
    """The folder of published weights, structures and trajectories next to the repository; the test is skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data is not next to the repository")
    return folder


@pytest.fixture(scope="session")
def cv_file(tmp_path_factory):
    """A file with a CV of random weights, of the heavy atoms of alanine dipeptide."""
    from molecules import ala2, random_cv

    path = tmp_path_factory.mktemp("cv") / "ala2.cv"
    random_cv(ala2().topology, scale=0.2).save(path)
    return path


@pytest.fixture
def shipped_files(tmp_path_factory, monkeypatch):
    """Stand-ins for the files that the package ships: settings only need them to be there. Returns their folder."""
    from protocol_texts import SHIPPED

    from openmm_geomgnn.representation import shipped

    folder = tmp_path_factory.mktemp("data")
    for name in SHIPPED:
        (folder / name).touch()
    monkeypatch.setattr(shipped, "DATA", folder)
    return folder


@pytest.fixture
def load_text(tmp_path, monkeypatch):
    """Loads a text as a file of settings, in a folder with a.pdb, b.pdb and some trajectories; warnings are errors."""
    from openmm_geomgnn.cli.settings.yaml_files import load_protocol

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "input"
    folder.mkdir()
    for name in ("a.pdb", "b.pdb", "a.xtc", "b.xtc", "a.dcd", "notes.txt", "mine.safetensors"):
        (folder / name).touch()
    (folder / "water.xml").write_text("<ForceField/>")
    (folder / "page.xml").write_text("<html/>")

    def load_text(text, kind=load_protocol, **overrides):
        path = folder / "x.yaml"
        path.write_text(text, encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return kind(path, **overrides)

    return load_text


@pytest.fixture
def refusal(load_text):
    """Gives the message with which a text is refused: one paragraph."""
    from openmm_geomgnn.errors import GeomGNNError

    def refusal(text, *arguments, **overrides):
        with pytest.raises(GeomGNNError) as error:
            load_text(text, *arguments, **overrides)
        assert type(error.value) is GeomGNNError and "\n" not in str(error.value)
        return str(error.value)

    return refusal


@pytest.fixture
def geomgnn(monkeypatch, capfd, tmp_path):
    """Run the command in this process, in an empty folder: (exit code, standard output, standard error)."""
    from openmm_geomgnn.cli import main as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # the command replaces it

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["geomgnn", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capfd.readouterr()

    return run
