"""A finished run, and copies of it to go on with."""

import os
import shutil

import pytest
from finished_run import finished_run


@pytest.fixture(scope="session")
def _finished(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    # one for all the processes that share the tests between them
    return finished_run((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished-run")


@pytest.fixture(scope="session")
def finished(_finished):
    """What the command said, and the folder of the finished run."""
    said, _, folder = _finished
    return said, folder


@pytest.fixture(scope="session")
def protocol_file(_finished):
    """The protocol of the finished run."""
    return _finished[1]


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished folder."""
    return shutil.copytree(finished[1], tmp_path / "copy")


@pytest.fixture
def load(protocol_file, copied):
    """Loads the protocol of the finished run, with changes, for the copy of its folder."""
    from openmm_geomgnn.cli.settings.yaml_files import load_protocol

    def load(**changes):
        overrides = {"output": str(copied)} | {name.replace("__", "."): value for name, value in changes.items()}
        return load_protocol(protocol_file, overrides)

    return load


@pytest.fixture
def no_simulation(monkeypatch):
    """Fails the test when a walker is started."""
    from openmm_geomgnn.sampling import runner, unbiased

    for kind, module in (("biased", runner), ("unbiased", unbiased)):

        def start(*arguments, kind=kind, **options):
            raise AssertionError(f"the {kind} simulation was started")

        monkeypatch.setattr(module, "WalkerPool", start)


@pytest.fixture
def no_report(monkeypatch):
    """Leaves out the report, which takes seconds."""
    from openmm_geomgnn.cli import run

    monkeypatch.setattr(run, "report", lambda protocol, seconds: {})
