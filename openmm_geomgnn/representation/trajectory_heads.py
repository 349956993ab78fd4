"""What mdtraj's C readers of DCD, XTC and TRR files take on trust, checked before they see a file.

They allocate, seek and copy by the numbers in the heads of files and frames; where a byte of these is wrong they may crash,
never end, or give numbers that were never written. Nothing is said here of files that end too early: see
`trajectory_bytes`.
"""

import functools
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from openmm_geomgnn.errors import GeomGNNError

_XTC_MAGIC, _TRR_MAGIC = 1995, 1993
_FIRST_SIZE, _LAST_SIZE = 9, 72  # indices of the sizes of small steps between atoms in an XTC frame
_UNCOMPRESSED = 9  # atoms of an XTC frame, at most
_PADDING = 8  # bytes after the atoms of an XTC frame, fewer than which another program may have written
_COMPILE_FROM = 2_000_000  # atoms of XTC frames, from which on compiling is worth its second


class _Damaged(Exception):
    """What is wrong with a file."""


def check_heads(path: Path) -> None:
    """Check the head of a DCD file, or those of all frames of an XTC or TRR file; files of other formats are not opened.

    Raises
    ------
    GeomGNNError
        Naming what is wrong, and in which frame.
    """
    check = _HEADS.get(path.suffix.lower())
    if check is None or not path.is_file():
        return
    with _named(path), open(path, "rb") as file:
        check(file, os.path.getsize(path))


def check_streams(path: Path, offsets: Sequence[int], first: int, step: int = 1) -> None:
    """Check that the frames of an XTC file that begin at these offsets hold as many atoms as their heads say.

    Files of other formats are not opened. `first` and `step` number the frames, for the error.

    Raises
    ------
    GeomGNNError
        Naming the first frame that does not.
    """
    if path.suffix.lower() != ".xtc" or len(offsets) == 0:
        return
    with _named(path), open(path, "rb") as file:
        for k, offset in enumerate(offsets):
            file.seek(int(offset))
            head = file.read(92)
            if len(head) < 92:
                continue
            atoms, big, small, size = _xtc_stream(head)
            if atoms <= _UNCOMPRESSED:
                return
            walk = _compiled() if atoms * len(offsets) > _COMPILE_FROM else _bits
            bits = walk(file.read(size), size, atoms, big, small)
            if bits < 0 or not 0 <= size - -(-bits // 8) < _PADDING:
                raise _Damaged(f"the compressed coordinates of frame {first + k * step} are not those of {atoms} atoms")


class _named:
    """Damage as a GeomGNNError that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "_named":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, _Damaged):
            raise GeomGNNError(
                f"The trajectory {self.path} is damaged: {error}. Copy it again from where it was made."
            ) from None


def _xtc(file: BinaryIO, end: int) -> None:
    at, frame, expected = 0, 0, None
    while at < end:
        file.seek(at)
        head = file.read(92)
        if len(head) < 8:
            return
        magic, atoms = struct.unpack_from(">2i", head)
        if magic != _XTC_MAGIC:
            raise _Damaged(f"byte {at}, where frame {frame} should begin, is not the beginning of a frame of an XTC file")
        expected = atoms if expected is None else expected
        if atoms != expected or atoms <= 0:
            raise _Damaged(f"frame {frame} is said to have {atoms} atoms{f', not {expected}' * (atoms != expected)}")
        if len(head) >= 56:
            (again,) = struct.unpack_from(">i", head, 52)
            if again != atoms:
                raise _Damaged(f"frame {frame} is said to have {atoms} atoms and the coordinates of {again}")
        if atoms <= _UNCOMPRESSED:
            at += 56 + 12 * atoms
        elif len(head) < 92:
            return
        else:
            at += 92 + -(-_xtc_size(head, frame, atoms) // 4) * 4
        frame += 1


def _xtc_size(head: bytes, frame: int, atoms: int) -> int:
    """Bytes of the compressed coordinates of a frame, by its head."""
    ints = struct.unpack_from(">8i", head, 60)
    if any(not 0 <= high - low < 2**31 - 3 for low, high in zip(ints[:3], ints[3:6], strict=True)):
        raise _Damaged(f"frame {frame} has coordinates from {ints[:3]} to {ints[3:6]}")
    if not _FIRST_SIZE <= ints[6] <= _LAST_SIZE:
        raise _Damaged(f"frame {frame} has steps of size {ints[6]}, which is not from {_FIRST_SIZE} to {_LAST_SIZE}")
    # the reader's buffer; an atom is at least a bit
    if not atoms <= 8 * ints[7] or ints[7] > 4 * int(3 * atoms * 1.2) - 12:
        raise _Damaged(f"frame {frame} is said to hold {atoms} atoms in {ints[7]} bytes")
    return ints[7]


def _xtc_stream(head: bytes) -> tuple[Any, ...]:
    """What follows the head of a frame that has been checked.

    These are the number of atoms, the bits of the parts of an atom that is given in full, the index of the first size of
    steps, and the number of bytes.
    """
    (atoms,) = struct.unpack_from(">i", head, 4)
    low, high, (small, size) = (struct.unpack_from(f">{n}i", head, at) for n, at in ((3, 60), (3, 72), (2, 84)))
    sizes = [b - a + 1 for a, b in zip(low, high, strict=True)]
    if max(sizes) > 0xFFFFFF:
        return atoms, sum(size.bit_length() for size in sizes), small, size
    return atoms, (sizes[0] * sizes[1] * sizes[2]).bit_length(), small, size


def _bits(data: Any, size: int, n_atoms: int, big: int, small: int) -> int:
    """Bits of the atoms of an XTC frame, or -1 where the numbers of atoms do not add up.

    An atom in full is followed by a bit, and where it is set by five: 3 (atoms that follow as steps) + (0, 1, 2: smaller,
    same or larger steps from then on). Without these five, as many atoms follow as before.
    """
    at, atoms, run = 0, 0, 0
    while atoms < n_atoms:
        at += big
        if at >= 8 * size:
            return -1
        change = 0
        flag = data[at >> 3] >> (7 - (at & 7)) & 1
        at += 1
        if flag:
            if at + 5 > 8 * size:
                return -1
            run = 0
            for bit in range(at, at + 5):
                run = 2 * run + (data[bit >> 3] >> (7 - (bit & 7)) & 1)
            change = run % 3 - 1
            run //= 3
            at += 5
        atoms += 1 + run
        at += run * small
        small += change
        if small < 9 or small > 72:
            return -1
    return at if atoms == n_atoms else -1


@functools.cache
def _compiled() -> Callable[..., int]:
    try:
        import numba
    except ImportError:
        return _bits
    return numba.njit(_bits)


def _trr(file: BinaryIO, end: int) -> None:
    at, frame, expected = 0, 0, None
    while at < end:
        file.seek(at)
        head = file.read(84)
        if len(head) < 68:
            if frame == 0:
                raise _Damaged(f"it has {end} bytes, which is less than the head of a frame")
            return
        magic, length, again = struct.unpack_from(">3i", head)
        if magic != _TRR_MAGIC or length != 13 or again != 12 or head[12:24] != b"GMX_trn_file":
            raise _Damaged(f"byte {at}, where frame {frame} should begin, is not the beginning of a frame of a TRR file")
        sizes = struct.unpack_from(">11i", head, 24)
        atoms = sizes[10]
        expected = atoms if expected is None else expected
        if atoms != expected or atoms <= 0:
            raise _Damaged(f"frame {frame} is said to have {atoms} atoms{f', not {expected}' * (atoms != expected)}")
        if sizes[7] == 0:  # mdtraj gives whatever was in memory
            raise GeomGNNError(
                f"Frame {frame} of the trajectory {file.name} holds no coordinates. Write the frames that do to a new file, "
                "for example with gmx trjconv."
            )
        real = sizes[7] // (3 * atoms)
        box, vectors = (0, 9 * real), (0, 3 * real * atoms)
        allowed = [(0,), (0,), box, box, box, (0,), (0,), vectors, vectors, vectors]
        if real not in (4, 8) or any(size not in known for size, known in zip(sizes, allowed, strict=False)):
            raise _Damaged(f"the parts of frame {frame} with {atoms} atoms are said to have {sizes[:10]} bytes")
        at += 76 + 2 * real + sum(sizes[:10])
        if frame == 0 and at > end:
            raise _Damaged(f"it has {end} bytes, and its first frame ends at {at}")
        frame += 1


def _dcd(file: BinaryIO, end: int) -> None:
    head = file.read(12)
    for order, kind, mark in (("<", "i", 4), (">", "i", 4), ("<", "q", 8), (">", "q", 8)):
        if head[mark : mark + 4] == b"CORD" and struct.unpack_from(f"{order}{kind}", head)[0] == 84:
            break
    else:
        raise _Damaged("it does not begin as a DCD file")
    file.seek(mark)

    def numbers(form: str) -> tuple[Any, ...]:
        content = file.read(struct.calcsize(f"{order}{form}"))
        if len(content) < struct.calcsize(f"{order}{form}"):
            raise _Damaged(f"it ends in its head, after {end} bytes")
        return struct.unpack(f"{order}{form}", content)

    _, *control, again, titles, n_titles = numbers(f"4s20i{kind}{kind}i")
    if again != 84:
        raise _Damaged("it does not begin as a DCD file")
    n_titles = 2 if n_titles == 1095062083 else n_titles if n_titles <= 1000 else 0  # as the reader takes those of Vega ZZ
    if n_titles < 0 or titles < 4 or (titles - 4) % 80:
        raise _Damaged(f"its titles are said to have {titles} bytes and {n_titles} lines")
    file.seek(80 * n_titles, os.SEEK_CUR)
    _, before, atoms, after = numbers(f"{kind}{kind}i{kind}")
    if before != 4 or after != 4 or not 0 < 12 * atoms <= end:
        raise _Damaged(f"it is said to have {atoms} atoms, and has {end} bytes")
    fixed = control[8]
    if not 0 <= fixed < atoms:
        raise _Damaged(f"{fixed} of its {atoms} atoms are said to be fixed")
    if fixed:
        before, *free, after = numbers(f"{kind}{atoms - fixed}i{kind}")
        if before != after or before != 4 * len(free) or not (0 < min(free) and max(free) <= atoms):
            raise _Damaged(f"the atoms that are not fixed, {len(free)} of {atoms}, are not listed")


_HEADS = {".dcd": _dcd, ".xtc": _xtc, ".trr": _trr}
