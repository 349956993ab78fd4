"""Files that are either whole or not there, and whatever has to be closed."""

import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path):
    """Yield a temporary path next to `path`; rename it to `path` when the block ends without an error.

    A reader, or a run that is killed half-way, never sees a half-written file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private to the user; give it the permissions any new file would have had
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Closing:
    """A context manager that calls its `close` when it ends."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def sha256(path, length=16):
    """The first `length` hexadecimal digits of the SHA-256 hash of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:length]
