"""Locks and backups of output folders: one process writes at a time, and nothing that is needed is overwritten."""

import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError

LOCK = ".lock"  # name in a folder; the lock of a file lies beside it
# (device and inode of the lock file, process, thread) -> how often the block is nested
_held: dict[tuple[int, int, int, int] | None, int] = {}
# errors of file systems without locks
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def locked(path: PathLike, folder: bool = True) -> Iterator[None]:
    """Keep all other processes, on every machine that sees the file system, away from `path`.

    The lock belongs to this process and thread, whose blocks may be nested, and the system releases it when the process
    ends, however it ends. It is an `flock`: between machines it is as reliable as the locks of the file system (NFS has
    them if its lock service runs, Lustre if it is mounted with `flock`). If there are none, a UserWarning is given.

    path : a folder, which is made, and removed again if nothing was put in it; or, with `folder=False`, a file, which need
        not exist.

    Raises
    ------
    GeomGNNError
        If another process or thread holds the lock, whose host and number the message names, or the folder is a file.
    """
    path = Path(os.path.realpath(path))
    if folder and path.is_file():
        raise GeomGNNError(f"{path} is a file, so it cannot be the folder for the results. Choose another output.")
    made = _make(path if folder else path.parent)
    file = path / LOCK if folder else path.with_name(f".{path.name}{LOCK}")
    try:
        owner = _owner(file)
        if owner in _held:
            _held[owner] += 1
            try:
                yield
            finally:
                _held[owner] -= 1
            return
        handle = _acquire(file, path)
        owner = _owner(handle)
        _held[owner] = 1
        try:
            yield
        finally:
            del _held[owner]
            if _owner(file) == owner:  # and not that of a new folder at this place
                file.unlink(missing_ok=True)
            os.close(handle)
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # it holds something by now
                parent.rmdir()


def is_empty(folder: Path, leftovers: Iterable[Path] = ()) -> bool:
    """Whether a folder holds nothing but the lock on it and `leftovers`, paths."""
    return {path.name for path in folder.iterdir()} <= {LOCK, *(path.name for path in leftovers)}


def set_aside(path: PathLike, inputs: Iterable[PathLike] = ()) -> Path:
    """Rename a folder or a file to NAME.previous-N, with the first free N, and give a UserWarning.

    It is a single rename, so everything is either at the old place or at the new one. The lock on a folder moves with it, so
    a folder that takes its place must be locked again. Returns the new path.

    Raises
    ------
    GeomGNNError
        If it is or holds one of `inputs` (see `check_outside`), or cannot be renamed. Nothing is changed in this case.
    """
    check_outside(path, inputs)
    path = Path(os.path.realpath(path))
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.previous-{number}")):
        number += 1
    try:
        os.rename(path, aside)
    except OSError as error:
        raise GeomGNNError(
            f"{path} cannot be renamed to {aside.name} ({error.strerror}) to make room for new results. Choose "
            "another output."
        ) from error
    if aside.is_dir():
        (aside / LOCK).unlink(missing_ok=True)
    warnings.warn(f"{path} is now {aside}: remove that when you do not need it any more.", UserWarning, stacklevel=3)
    return aside


def check_outside(path: PathLike, inputs: Iterable[PathLike]) -> None:
    """Raise a GeomGNNError that names those of the paths `inputs` that are `path`, which is to be moved aside, or in it."""
    there = [one for one in map(str, inputs) if os.path.exists(one)]
    within = [one for one in there if Path(os.path.realpath(one)).is_relative_to(os.path.realpath(path))]
    if within:
        raise GeomGNNError(
            f"--overwrite would move {path} aside, but what is made now needs {', '.join(dict.fromkeys(within))} in it. "
            "Copy that to another place and name it there, or choose another output."
        )


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns the folders that were made, from the outermost on."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
    return missing[::-1]


def _owner(file: Path | int) -> tuple[int, int, int, int] | None:
    """The key of `_held` for a lock file, a path or a descriptor, as far as this thread is concerned; None without one."""
    try:
        found = os.stat(file)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise
    return found.st_dev, found.st_ino, os.getpid(), threading.get_ident()


def _acquire(file: Path, path: Path) -> int:
    """Open and lock the lock file; returns its descriptor. Raises GeomGNNError if another process holds it."""
    while True:
        # not the folder itself: network file systems only lock files that are open for writing
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the process that made the folder has removed it again
            _make(file.parent)
            continue
        try:
            if not _flock(handle, path):
                raise GeomGNNError(_refusal(file, path))
            # the process that held it until now may have removed the file in between
            owner = _owner(handle)
            if owner is not None and _owner(file) == owner:
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, path: Path) -> bool:
    """Whether the lock could be had."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed on another machine; the caller finds that out
            return True
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"The file system of {path} has no locks ({error.strerror}), so nothing keeps a second process out. See to it "
            "that only one writes there.",
            UserWarning,
            stacklevel=5,
        )
    return True


def _sign(handle: int) -> None:
    """Write into the lock file who has it."""
    who = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": shlex.join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:200],
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(who) + "\n").encode(), 0)
    os.fsync(handle)


def _refusal(file: Path, path: Path) -> str:
    who = None
    for _ in range(20):  # it may not have signed yet
        with suppress(OSError, ValueError):
            who = json.loads(file.read_text(encoding="utf-8"))
            break
        time.sleep(0.01)
    if who is None:
        by = "another process"
    elif (who["host"], who["process"]) == (socket.gethostname(), os.getpid()):
        by = f"another thread of this process ({who['process']} on {who['host']}, since {who['since']})"
    else:
        by = f"process {who['process']} on {who['host']} (`{who['command']}`, since {who['since']})"
    return f"{path} is in use by {by}. Wait for it to end, or stop it, or choose another output."
