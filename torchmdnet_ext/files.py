"""Files that appear under their name only when they are complete, also after a power failure."""

import os
from pathlib import Path
from typing import TypeAlias

PathLike: TypeAlias = str | os.PathLike[str]


def write_whole(path: PathLike, content: bytes) -> None:
    """Write bytes atomically: under another name first, so that no reader sees half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        replace_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(temporary: PathLike, path: PathLike) -> None:
    """Rename a complete file to `path`, in a way that survives a power failure."""
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(Path(path).parent)


def sync_folder(folder: PathLike) -> None:
    """Wait until the names in a folder are on the disk; do nothing where the system does not support this."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:  # some network file systems do not support this, and need not
        pass
    finally:
        os.close(handle)
