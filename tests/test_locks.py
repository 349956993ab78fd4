"""One process at a time writes to a folder: the lock itself, and that whatever writes takes it."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.locks import locked

HOLD = """
import sys
from openmm_geomgnn.locks import locked
with locked(sys.argv[1], folder=sys.argv[2] == "folder"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path, kind="folder"):
    """Another process has the lock while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        process.communicate("")


def refusal(work, *arguments, **options):
    with pytest.raises(GeomGNNError) as error:
        work(*arguments, **options)
    return str(error.value)


def enter(path, **options):
    with locked(path, **options):
        pass


def test_a_second_process_is_refused_by_name(tmp_path):
    with held(tmp_path / "run") as process:
        message = refusal(enter, tmp_path / "run")
        assert f"{tmp_path / 'run'} is in use by process {process.pid} on {socket.gethostname()}" in message
        # by whatever name
        (tmp_path / "link").symlink_to("run")
        assert str(process.pid) in refusal(enter, tmp_path / "link")
        enter(tmp_path / "other")
    enter(tmp_path / "run")


def test_files_are_locked_beside_them(tmp_path):
    with held(tmp_path / "a.safetensors", "file") as process:
        assert str(process.pid) in refusal(enter, tmp_path / "a.safetensors", folder=False)
        enter(tmp_path / "b.safetensors", folder=False)
        enter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_holds_nothing(tmp_path):
    with held(tmp_path / "run") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "run" / ".lock").exists()
        enter(tmp_path / "run")
    (tmp_path / "run").rmdir()  # nothing is left in it


def test_nested_blocks_and_other_threads(tmp_path):
    messages = []
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        thread = threading.Thread(target=lambda: messages.append(refusal(enter, tmp_path)))
        thread.start()
        thread.join()
    assert f"another thread of this process ({os.getpid()} on" in messages[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_stays_empty_is_removed(tmp_path):
    enter(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["result"]


@pytest.mark.parametrize("stale", [False, True])
def test_a_lock_file_removed_while_it_was_waited_for(stale, tmp_path, monkeypatch):
    """Its holder, on a network file system one on another machine, ends between our opening it and our locking it: what we
    have locked is no file any more."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(handle, operation):
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
            if stale:
                raise OSError(errno.ESTALE, "Stale file handle")
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path):
        assert len(calls) == 2
        program = f"from openmm_geomgnn.locks import locked\nwith locked({str(tmp_path)!r}): pass"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"in use by process {os.getpid()} on" in done.stderr


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def none(handle, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="has no locks .*only one writes there"):
        enter(tmp_path)


# ------------------------------------------------------------------------------------------------------ whatever writes


@pytest.fixture
def rival(tmp_path):
    """Tries to get the lock of a path, as another process would; the messages with which it was refused."""
    messages = []

    def rival(path, **options):
        thread = threading.Thread(target=lambda: messages.append(refusal(enter, path, **options)))
        thread.start()
        thread.join()

    return rival, messages


def test_runs_are_locked(tmp_path, rival):
    from phi_runs import biased, run

    from openmm_geomgnn.sampling.unbiased import run_unbiased

    attempt, messages = rival

    def unbiased(folder, progress):
        run_unbiased([biased(make_cv=None)], 0.3, folder, progress=progress)

    for name, work in (("biased", lambda folder, progress: run(folder, 0.3, progress=progress)), ("unbiased", unbiased)):
        folder = tmp_path / name
        work(folder, lambda where, folder=folder: attempt(folder))
        assert len(messages) >= 1 and all("is in use by" in message for message in messages)
        messages.clear()
        before = sorted(folder.iterdir())
        with held(folder) as process:
            assert f"process {process.pid} on" in refusal(work, folder, None)
        assert sorted(folder.iterdir()) == before and folder / ".lock" not in before


def test_builds_are_locked(tmp_path, rival):
    from build_sources import Gas, plan

    from openmm_geomgnn.conformers.build import build

    attempt, messages = rival
    store = tmp_path / "store"
    build(plan(store, Gas(number=30)), processes=1, progress=lambda done, total, note="": attempt(store))
    assert len(messages) >= 2
    before = sorted(store.iterdir())
    with held(store) as process:
        for overwrite in (False, True):
            assert f"process {process.pid} on" in refusal(build, plan(store, Gas(number=30)), 1, overwrite)
    assert sorted(store.iterdir()) == before
    # the lock is on the new folder, not on the one that was moved aside
    messages.clear()
    with pytest.warns(UserWarning, match="store.previous-1"):
        build(plan(store, Gas(number=40)), 1, True, lambda done, total, note="": attempt(store))
    assert len(messages) >= 2 and not list(tmp_path.glob("*/.lock"))


def test_embeddings_are_locked(tmp_path, rival):
    zarr = pytest.importorskip("zarr")
    from molecules import ALA2

    from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories

    attempt, messages = rival
    store = tmp_path / "a.zarr"

    def embed(**options):
        return embed_trajectories(ALA2, [ALA2], store, EmbedSettings(), workers=1, **options)

    embed(progress=lambda *done: attempt(store))
    assert len(messages) == 2 and sorted(zarr.open_group(store).group_keys()) == ["0"]
    with held(store) as process:
        for overwrite in (False, True):
            assert f"process {process.pid} on" in refusal(embed, overwrite=overwrite)
    assert not (store / ".lock").exists() and not (tmp_path / "a.zarr.previous-1").exists()


def test_fits_and_distillations_are_locked(tmp_path, cv_file):
    from molecules import ALA2

    from openmm_geomgnn.cli import distill, fit
    from openmm_geomgnn.cli.settings.yaml_files import distill_settings, load_fit

    output = tmp_path / "a.safetensors"
    (tmp_path / "fit.yaml").write_text(f"{{topology: {ALA2}, trajectories: {ALA2}, frame_interval: 1 ps, output: {output}}}")
    wanted = load_fit(tmp_path / "fit.yaml")
    student = distill_settings([str(cv_file), str(ALA2), str(ALA2)], {"output": str(output)})
    with held(output, "file") as process:
        for work, settings in ((fit.run_fit, wanted), (distill.run_distill, student)):
            assert f"process {process.pid} on" in refusal(work, settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.yaml"]
    (tmp_path / "a.safetensors").write_bytes(cv_file.read_bytes())
    encoder = load_fit(tmp_path / "fit.yaml", {"cv.encoder": str(output)})
    assert "which the fit itself needs" in refusal(fit.run_fit, encoder)
