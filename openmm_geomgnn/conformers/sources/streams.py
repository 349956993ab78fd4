"""Byte ranges of plain and compressed files, and the ends of the records in them.

A task is a byte range of the uncompressed text. To reach a range of a compressed file everything before it has to be
uncompressed, so each process keeps the file open where it stopped: tasks done in order uncompress the file once.
"""

import functools
import gzip
import os
import re
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from openmm_geomgnn.errors import GeomGNNError

BLOCK = 1 << 24  # bytes read at a time
# exceptions of the standard library for a damaged file
UNREADABLE = (EOFError, OSError, zlib.error, tarfile.TarError, zipfile.BadZipFile)
_reading = threading.Lock()


def open_binary(path: str, member: str | None = None) -> IO[bytes]:
    """Open a seekable binary stream of the uncompressed content of a file.

    Parameters
    ----------
    path : path
        A plain file, or a gzip file if its name ends in `.gz` or `.tgz`. In a tar archive (`.tar`, `.tar.gz`, `.tgz`) the
        first file whose name ends in `member` is opened, in a zip archive (`.zip`, a Python wheel `.whl`) the file `member`.
    member : str, optional
    """
    name = str(path).lower()
    if name.endswith((".zip", ".whl")):
        zipped = zipfile.ZipFile(path)
        try:
            inner = zipped.open(member or "")
        except KeyError:
            raise GeomGNNError(f"{path} holds no file {member}: give the archive that does, or the file itself.") from None
        return cast(IO[bytes], gzip.GzipFile(fileobj=inner)) if member and member.endswith(".gz") else inner
    stream: Any = gzip.open(path) if name.endswith((".gz", ".tgz")) else open(path, "rb")
    if member is not None and re.search(r"\.(tar(\.gz)?|tgz)$", name):
        archive = tarfile.open(fileobj=stream)
        for entry in archive:
            if entry.isfile() and entry.name.endswith(member):
                return cast(IO[bytes], archive.extractfile(entry))
        raise GeomGNNError(f"{path} holds no file that ends in {member}: give the archive that does, or the file itself.")
    return stream


def version(path: str) -> tuple[int, int]:
    """A value that changes when the file is rewritten; results that are cached for a file are cached with it."""
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4)
def _kept_open(path: str, member: str | None, modified: tuple[int, int], process: int) -> IO[bytes]:
    return open_binary(path, member)


def read_range(path: str, start: int, stop: int, member: str | None = None) -> bytes:
    """Read the bytes `start` to `stop` of the uncompressed content of a file.

    Raises GeomGNNError if the file has become shorter, or is damaged.
    """
    try:
        with _reading:
            # a process that was forked must not share the place in the file with its parent
            stream = _kept_open(str(path), member, version(path), os.getpid())
            stream.seek(start)
            content = stream.read(stop - start)
    except UNREADABLE as error:
        raise damaged(path, error) from error
    if len(content) != stop - start:
        raise GeomGNNError(f"{path} ends at byte {start + len(content)} and was longer before: has it been replaced?")
    return content


@contextmanager
def opened(path: str, member: str | None = None) -> Iterator[IO[bytes]]:
    """Open a stream with `open_binary` and close it at the end. Raises GeomGNNError if the file is damaged."""
    try:
        with open_binary(path, member) as stream:
            yield stream
    except UNREADABLE as error:
        raise damaged(path, error) from error


def blocks(path: str, member: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of the uncompressed content of a file, block by block."""
    offset = 0
    with opened(path, member) as stream:
        while block := stream.read(BLOCK):
            yield offset, block
            offset += len(block)


def damaged(path: str, error: BaseException) -> GeomGNNError:
    """Make the error of a file that cannot be read."""
    return GeomGNNError(f"{path} cannot be read ({error}): it is damaged, or not what its name says. Get it again.")


def line_bounds(path: str, member: str | None = None) -> np.ndarray:
    """Find where lines start, (lines + 1,) int64: line i is the bytes bounds[i]:bounds[i + 1]."""
    bounds, size = [np.zeros(1, dtype=np.int64)], 0
    for offset, block in blocks(path, member):
        bounds.append(np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n")) + offset + 1)
        size = offset + len(block)
    return _closed(np.concatenate(bounds), size)


def record_bounds(path: str, separator: bytes, member: str | None = None) -> np.ndarray:
    """Find where records start that end in a line `separator` (bytes), as `line_bounds` does for lines."""
    pattern = record_end(separator)
    bounds, rest, unfinished, size = [0], b"", False, 0
    for offset, block in blocks(path, member):
        text, base = rest + block, offset - len(rest)
        # the text after the last full line may be half a separator; it is kept from the start of a line, as ^ requires
        end = text.rfind(b"\n") + 1
        ends = [match.end() for match in pattern.finditer(text, 0, end)]
        bounds += [base + position for position in ends]
        unfinished = (unfinished and not ends) or bool(text[ends[-1] if ends else 0 : end].strip())
        rest, size = text[end:], offset + len(block)
    if unfinished or rest.strip():
        bounds.append(size)
    return np.array(bounds, dtype=np.int64)


def record_end(separator: bytes) -> re.Pattern[bytes]:
    """The pattern of the line that ends a record."""
    return re.compile(rb"^" + re.escape(separator) + rb"[ \t]*(?:\r?\n|\Z)", re.MULTILINE)


def _closed(bounds: np.ndarray, size: int) -> np.ndarray:
    return bounds if bounds[-1] == size else np.append(bounds, size)
