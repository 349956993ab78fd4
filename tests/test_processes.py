"""Worker processes: what they begin with."""

import os
import sys

import pytest

from openmm_geomgnn.processes import parent_is_gone, start_process


def tell(connection, name):
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    limits = {key: value for key, value in os.environ.items() if key.endswith("_THREADS")}
    connection.send((os.environ.get(name), limits, threads, "openmm" in sys.modules, parent_is_gone()))
    connection.recv()


@pytest.mark.parametrize("value", ["first", "second"])  # the second process may be a copy of what the first was copied from
def test_the_environment_of_now_one_thread_and_no_engine(value, monkeypatch):
    monkeypatch.setenv("GEOMGNN_TEST", value)
    monkeypatch.setenv("OPENMM_CPU_THREADS", "7")
    process, connection = start_process(tell, "GEOMGNN_TEST")
    found, limits, threads, engine, alone = connection.recv()
    assert found == value and set(limits.values()) == {"1"} and threads in (None, 1) and not alone
    assert not engine  # which may start the driver of a GPU, and that cannot be copied
    assert os.environ["OPENMM_CPU_THREADS"] == "7"
    connection.close()
    process.join(10)
    assert process.exitcode == 1  # of the error of `recv`


def test_a_process_that_is_killed_shows():
    process, connection = start_process(tell, "GEOMGNN_TEST")
    connection.recv()
    process.kill()
    with pytest.raises((EOFError, OSError)):
        connection.recv()
    process.join(10)
    assert process.exitcode == -9
