"""What the bytes of trajectory files say, format by format: how many frames are whole, and the times of these.

Of a file that ends too early other readers mostly say nothing: a DCD file has the frames that there are, an XTC file loses
the last one, and a NetCDF file gives zeros.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Extent(NamedTuple):
    """How much of a trajectory file is there.

    Attributes
    ----------
    whole : int
        Frames that are in it from their first to their last byte.
    claimed : int or None
        Frames that its header counts.
    rest : int
        Bytes, or lines, of another frame.
    """

    whole: int
    claimed: int | None = None
    rest: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the file ends within a frame, or before the last one that its header counts."""
        return self.rest > 0 or (self.claimed or 0) > self.whole


def extent(path: Path, handle: Any, n_atoms: int) -> Extent | None:
    """The `Extent` of a trajectory file, or None for a format of which it is not known how it ends.

    Parameters
    ----------
    path : Path
    handle : file of mdtraj.open
    n_atoms : int
    """
    kind = KINDS.get(path.suffix.lower())
    return None if kind is None else kind(path, handle, n_atoms)


def _dcd(path: Path, handle: Any, n_atoms: int) -> Extent | None:
    with open(path, "rb") as file:
        head = file.read(92)
        order = {84: "<", 84 << 24: ">"}.get(struct.unpack_from("<i", head)[0] if len(head) == 92 else 0)
        if order is None:  # one with 64-bit marks
            return None

        def number(at: int) -> int:
            return struct.unpack_from(f"{order}i", head, at)[0]

        charmm = number(84) != 0
        fixed, box, fourth = number(40), charmm and number(48), charmm and number(52)
        (titles,) = struct.unpack(f"{order}i", file.read(4))
        file.seek(titles + 8, os.SEEK_CUR)
        (atoms,) = struct.unpack(f"{order}i", file.read(4))
        start = file.seek(4, os.SEEK_CUR)
    axes = 4 if fourth else 3
    around = (56 if box else 0) + 8 * axes
    first = following = around + 4 * axes * atoms
    if fixed:  # atoms that do not move are in the first frame only
        start += 8 + 4 * (atoms - fixed)
        following = around + 4 * axes * (atoms - fixed)
    size = os.path.getsize(path) - start
    if size < first:
        return Extent(0, number(8), max(0, size))
    frames, rest = divmod(size - first, following)
    return Extent(1 + frames, number(8), rest)


def _xtc(path: Path, handle: Any, n_atoms: int) -> Extent:
    def size(head: bytes) -> int:
        (atoms,) = struct.unpack_from(">i", head, 4)
        if atoms <= 9:  # not compressed
            return 56 + 12 * atoms
        wide = struct.unpack_from(">i", head)[0] == 2023  # of files with more than 2^31 bytes in a frame
        (packed,) = struct.unpack_from(">q" if wide else ">i", head, 88)
        return 88 + (8 if wide else 4) + -(-packed // 4) * 4

    return _by_last_frame(path, handle, 96, size)


def _trr(path: Path, handle: Any, n_atoms: int) -> Extent:
    def size(head: bytes) -> int:
        sizes = struct.unpack_from(">11i", head, 24)
        return 76 + 2 * _real(sizes) + sum(sizes[:10])

    return _by_last_frame(path, handle, 68, size)


def _real(sizes: Sequence[int]) -> int:
    """Bytes of a number in a frame of a TRR file, from the sizes of its parts, box and atoms, and the number of these."""
    return sizes[2] // 9 or max(sizes[7:10]) // (3 * sizes[10])


def times_at(path: Path, offsets: np.ndarray) -> np.ndarray:
    """Times (F,), in ps and float64, of the frames that begin at these offsets of an XTC or TRR file."""
    import numpy as np

    content: Any = np.memmap(path, dtype=np.uint8, mode="r")

    def numbers(at: int, kind: str) -> np.ndarray:
        size = np.dtype(kind).itemsize
        return content[offsets[:, None] + np.arange(at, at + size)].view(kind)[:, 0].astype(np.float64)

    if path.suffix.lower() == ".xtc":
        return numbers(12, ">f4")
    sizes = struct.unpack_from(">11i", content, 24 + int(offsets[0]))
    return numbers(76, f">f{_real(sizes)}")


def _by_last_frame(path: Path, handle: Any, head: int, frame_size: Callable[[bytes], int]) -> Extent:
    """By the offsets that mdtraj has found; the last frame that begins in the file may end outside."""
    offsets = handle.offsets
    if len(offsets) == 0:
        return Extent(0, None, os.path.getsize(path))
    last, end = int(offsets[-1]), os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(last)
        content = file.read(head)
    try:
        over = end - last - frame_size(content)
    except struct.error:  # it ends in its head
        over = -1
    return Extent(len(offsets), None, over) if over >= 0 else Extent(len(offsets) - 1, None, end - last)


def _netcdf(path: Path, handle: Any, n_atoms: int) -> Extent | None:
    from scipy.io import netcdf_file

    with open(path, "rb") as file:
        head = file.read(8)
    if head[:3] != b"CDF":  # HDF5 inside, which looks after itself
        return None
    (claimed,) = struct.unpack_from(">i", head, 4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that arrays are still mapped when it is closed
            netcdf_file(path, mmap=True).close()
    except (ValueError, TypeError):
        return Extent(0, claimed)
    return Extent(claimed, claimed)


def _xyz(path: Path, handle: Any, n_atoms: int) -> Extent:
    lines, last = 0, b"\n"
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            lines, last = lines + block.count(b"\n"), block
    whole, rest = divmod(lines, n_atoms + 2)
    return Extent(whole, None, rest + (not last.endswith(b"\n")))


KINDS = {
    ".dcd": _dcd,
    ".xtc": _xtc,
    ".trr": _trr,
    ".xyz": _xyz,
    **dict.fromkeys((".nc", ".netcdf", ".ncdf"), _netcdf),
}
