"""COLVAR files: one row of numbers per walker and output time, as PLUMED writes and reads them.

    #! FIELDS time walker cv.1 opes.bias opes.rct opes.zed opes.neff opes.nker temperature
     0.6 0 1.20853341 -39.9998727 0 1 1 1 298.713

Times are in ps, energies in kJ/mol, temperatures in K. Programs that read PLUMED's files (`plumed driver`, pandas,
`numpy.loadtxt`) also read these, and `read_colvar` reads PLUMED's.
"""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import Closing, atomic_write
from openmm_geomgnn.units import did_you_mean

_FIELDS = "#! FIELDS"
# 12 significant digits: a relative rounding error of 5e-13, in about 60 % of the space of an exact float64
_FORMAT = "%.12g"


class ColvarWriter(Closing):
    """Appends blocks of rows to a COLVAR file.

    Every `write` ends with a flush, so that a run that is killed loses at most the block being written; everything before a
    `sync` survives a power failure as well. Use it as a context manager, or call `close`.

    Parameters
    ----------
    path : path
    fields : sequence of str
        The column names, in order.
    append : bool
        Continue an existing file with the same fields, or start a new one if there is none. Without it a new file is
        started, and an existing one is replaced.

    Raises
    ------
    GeomGNNError
        If field names are unusable, or the file to be continued has different fields.
    """

    def __init__(self, path: PathLike, fields: Sequence[str], append: bool = False) -> None:
        self.path = Path(path)
        self.fields = tuple(fields)
        _check_fields(self.fields)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if append and self.path.exists() and self.path.stat().st_size > 0:
            self._check_continues()
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        else:
            self._file = self.path.open("w", encoding="utf-8", newline="\n")
            self._file.write(f"{_FIELDS} {' '.join(self.fields)}\n")
            self._file.flush()

    def _check_continues(self) -> None:
        text = self.path.read_bytes()
        headers = [line for line in text.decode("utf-8", "replace").splitlines() if line.startswith(_FIELDS)]
        found = tuple(headers[-1][len(_FIELDS) :].split()) if headers else ()
        if found != self.fields:
            raise GeomGNNError(
                f"{self.path} has the fields {_field_list(found)}, but the run to be continued writes "
                f"{_field_list(self.fields)}. Continue it with the settings it was started with, or choose another "
                "output folder."
            )
        if not text.endswith(b"\n"):
            raise GeomGNNError(
                f"The last line of {self.path} is incomplete: the run that wrote it was stopped within a row. Cut the "
                "file at the checkpoint with openmm_geomgnn.sampling.colvar.truncate_colvar, then continue it."
            )

    def write(self, rows: npt.ArrayLike | Mapping[str, npt.ArrayLike]) -> None:
        """Append a block of rows and flush.

        rows: (n, n_fields) array in the order of `fields`, one row (n_fields,), or a mapping from every field to a
        scalar or (n,) array (scalars are repeated).
        """
        if isinstance(rows, Mapping):
            rows = self._stack(rows)
        rows = np.atleast_2d(np.asarray(rows, dtype=np.float64))
        if rows.ndim != 2 or rows.shape[1] != len(self.fields):
            raise GeomGNNError(
                f"A block of shape {rows.shape} does not fit the {len(self.fields)} fields of {self.path}: "
                f"{' '.join(self.fields)}. Give rows of shape (n, {len(self.fields)})."
            )
        line = " " + " ".join([_FORMAT] * len(self.fields)) + "\n"
        self._file.write("".join(line % tuple(row) for row in rows.tolist()))
        self._file.flush()

    def _stack(self, columns: Mapping[str, npt.ArrayLike]) -> np.ndarray:
        unknown = [name for name in columns if name not in self.fields]
        if unknown:
            raise GeomGNNError(f"{self.path} has no field {unknown[0]!r}.{_hint(unknown[0], self.fields)}")
        missing = [name for name in self.fields if name not in columns]
        if missing:
            raise GeomGNNError(f"The rows for {self.path} lack the field {missing[0]!r}. Give a value for every field.")
        values = [np.atleast_1d(np.asarray(columns[name], dtype=np.float64)) for name in self.fields]
        lengths = {len(value) for value in values if len(value) != 1}
        if len(lengths) > 1:
            raise GeomGNNError(f"The columns for {self.path} differ in length, {sorted(lengths)}. Give one length.")
        return np.stack(np.broadcast_arrays(*values), axis=1)

    def flush(self) -> None:
        """Hand everything written to the operating system."""
        self._file.flush()

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_colvar(path: PathLike, fields: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read a COLVAR file, ours or PLUMED's: a dictionary from field name to an (n,) float64 array.

    Rows keep the order of the file. Further headers (PLUMED writes one at every restart), `#! SET` lines and comments are
    skipped. A truncated last line is ignored with a warning; a damaged line inside the file is an error.

    Parameters
    ----------
    path : path
    fields : sequence of str, optional
        The names to return, in this order; all of them by default.

    Returns
    -------
    dict of str to (n,) float64 ndarray

    Raises
    ------
    GeomGNNError
        If the file does not exist or has no `#! FIELDS` line, if a row does not have as many values as its header has
        fields, if headers differ, or if a requested field does not exist.

    Examples
    --------
    >>> from openmm_geomgnn.sampling.colvar import ColvarWriter, read_colvar
    >>> with ColvarWriter("COLVAR", ["time", "walker", "cv.1"]) as colvar:
    ...     colvar.write([[0.2, 0, 1.25], [0.4, 0, 1.5]])
    >>> read_colvar("COLVAR", fields=["time", "cv.1"])
    {'time': array([0.2, 0.4]), 'cv.1': array([1.25, 1.5 ])}
    """
    path = Path(path)
    names, rows = _parse(path)
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    colvar = {name: values[:, i].copy() for i, name in enumerate(names)}
    if fields is None:
        return colvar
    return {name: column(colvar, name, path) for name in fields}


def column(colvar: Mapping[str, np.ndarray], name: str, source: object = "the COLVAR data") -> np.ndarray:
    """Get the column `name` of `colvar`. Raises a GeomGNNError that names the nearest field if there is none."""
    if name not in colvar:
        raise GeomGNNError(f"There is no field {name!r} in {source}.{_hint(name, colvar)}")
    return colvar[name]


def split_walkers(colvar: Mapping[str, np.ndarray], field: str = "walker") -> list[dict[str, np.ndarray]]:
    """Split into one dictionary per walker, ordered by number; a single one if there is no field of walkers."""
    if field not in colvar:
        return [dict(colvar)]
    walker = colvar[field]
    return [{name: values[walker == w] for name, values in colvar.items()} for w in np.unique(walker)]


def truncate_colvar(path: PathLike, time: float | None = None, rows: int | None = None) -> int:
    """Cut a COLVAR file back to a checkpoint and return the number of rows kept.

    Give exactly one of `rows` (the number of rows to keep) and `time` (ps; later rows are removed). Headers and comments
    are kept. The file is replaced atomically.

    Raises GeomGNNError if the file does not exist or has fewer rows than requested.
    """
    path = Path(path)
    if (time is None) == (rows is None):
        raise GeomGNNError("truncate_colvar needs either a time in ps or a number of rows: give exactly one of them.")
    there = _read_lines(path)
    lines = there[:-1] if there and not there[-1].endswith("\n") else there
    # rounding of printed times: a row at the checkpoint's own time stays
    latest = math.inf if time is None else time * (1 + 1e-9) + 1e-9
    kept, n_kept = [], 0
    time_index = None
    for line in lines:
        if line.startswith("#") or not line.strip():
            if time is not None and line.startswith(_FIELDS):
                time_index = _time_index(line, path)
            kept.append(line)
            continue
        if rows is not None:
            keep = n_kept < rows
        else:
            if time_index is None:
                raise _no_header(path)
            keep = _number(line, time_index, path) <= latest
        if keep:
            kept.append(line)
            n_kept += 1
    if rows is not None and n_kept < rows:
        raise _too_short(path, n_kept, rows)
    if kept != there:
        with atomic_write(path) as temporary:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(kept)
    return n_kept


def check_rows(path: PathLike, rows: int) -> None:
    """Raise a GeomGNNError if a COLVAR file does not exist or has fewer rows than a checkpoint expects."""
    complete = [line for line in _read_lines(Path(path)) if line.endswith("\n")]
    there = sum(not line.startswith("#") and bool(line.strip()) for line in complete)
    if there < rows:
        raise _too_short(path, there, rows)


def _too_short(path: PathLike, there: int, rows: int) -> GeomGNNError:
    return GeomGNNError(
        f"{path} has {there} complete rows, but {rows} had been written at the checkpoint: the file was cut, or belongs to "
        "another run. Restore it, or start a new run in another folder."
    )


def _parse(path: Path) -> tuple[list[str], list[list[float]]]:
    """Return the field names, and the rows as lists of floats in the order of those names."""
    lines = _read_lines(path)
    incomplete = f"The last line of {path} is incomplete and was left out."
    if lines and not lines[-1].endswith("\n"):
        # the digits that are there may be only the first ones, so the row cannot be used even if it looks whole
        warnings.warn(incomplete, stacklevel=3)
        lines = lines[:-1]
    names, order, rows = None, None, []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            if line.startswith(_FIELDS):
                header = line[len(_FIELDS) :].split()
                _check_fields(header, f"{path}, line {number}: ")
                if names is None:
                    names = header
                elif set(header) != set(names):
                    raise GeomGNNError(
                        f"{path} changes its fields at line {number}, from {_field_list(names)} to {_field_list(header)}. "
                        "Split the file there and read the parts one by one."
                    )
                order = None if header == names else [header.index(name) for name in names]
            continue
        words = line.split()
        if not words:
            continue
        if names is None:
            raise _no_header(path)
        if len(words) < len(names) and number == len(lines):
            warnings.warn(incomplete, stacklevel=3)
            break
        if len(words) != len(names):
            raise GeomGNNError(
                f"{path}, line {number} has {len(words)} values for {len(names)} fields. The file is damaged there: "
                "remove the line, or cut the file before it with openmm_geomgnn.sampling.colvar.truncate_colvar."
            )
        try:
            row = [float(word) for word in words]
        except ValueError as error:
            raise GeomGNNError(f"{path}, line {number} holds something that is not a number: {error}.") from error
        rows.append(row if order is None else [row[i] for i in order])
    if names is None:
        raise _no_header(path)
    return names, rows


def _read_lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return file.readlines()
    except OSError as error:
        raise GeomGNNError(f"Cannot read the COLVAR file {path}: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise GeomGNNError(f"{path} is not a COLVAR file: it holds bytes that are not text. Check the path.") from error


def _time_index(header: str, path: Path) -> int:
    names = header[len(_FIELDS) :].split()
    if "time" not in names:
        raise GeomGNNError(f"{path} has no field 'time', so it cannot be cut at a time: give a number of rows instead.")
    return names.index("time")


def _number(line: str, index: int, path: Path) -> float:
    try:
        return float(line.split()[index])
    except (IndexError, ValueError) as error:
        raise GeomGNNError(f"{path} has a damaged row, {line.strip()!r}. Remove it, then cut again.") from error


def _check_fields(fields: Sequence[str], where: str = "") -> None:
    if not fields:
        raise GeomGNNError(f"{where}no field is named. A COLVAR file needs at least one, usually 'time' first.")
    for i, name in enumerate(fields):
        if not isinstance(name, str) or len(name.split()) != 1 or name != name.strip():
            raise GeomGNNError(f"{where}{name!r} cannot name a field: field names are words without white space.")
        if name in fields[:i]:
            raise GeomGNNError(f"{where}the field {name!r} is named twice. Give every field its own name.")


def _no_header(path: Path) -> GeomGNNError:
    return GeomGNNError(f"{path} has no '{_FIELDS}' line before its first row, so it is not a COLVAR file. Check the path.")


def _hint(name: str, fields: Iterable[str]) -> str:
    return f"{did_you_mean(name, fields)} The fields are {_field_list(fields)}."


def _field_list(fields: Iterable[str], limit: int = 12) -> str:
    fields = list(fields)
    if not fields:
        return "none"
    more = f" and {len(fields) - limit} more" if len(fields) > limit else ""
    return " ".join(fields[:limit]) + more
