"""Files that are written atomically, even in case of a power failure, and objects that have to be closed."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from openmm_geomgnn.aliases import PathLike
from torchmdnet_ext.files import replace_file, sync_folder

__all__ = ["Closing", "atomic_write", "leftovers", "remove_leftovers", "replace_file", "sha256", "sync_folder"]

# in the names of temporary files: what a process that was killed has left behind can be told from everything else
_TEMPORARY = ".temporary-"


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` when the block ends without an error.

    A reader, or a run that is killed half-way, never sees a half-written file. The content is on the disk before the new
    name is, and the name before this ends: a power failure leaves the old file or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}{_TEMPORARY}", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private to the user; give it the permissions any new file would have had
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def leftovers(folder: PathLike) -> list[Path]:
    """The temporary files of `atomic_write` in a folder: of no use but to a process that is writing one, if there is any."""
    return list(Path(folder).glob(f".*{_TEMPORARY}*"))


def remove_leftovers(folder: PathLike) -> None:
    """Remove what killed processes have left in a folder. Nobody may be writing to it."""
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


class Closing:
    """A context manager that calls its `close` when it ends."""

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Release what is open; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} must define close().")

    def __exit__(self, *exception: object) -> None:
        self.close()


def sha256(path: PathLike, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 hash of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:length]
