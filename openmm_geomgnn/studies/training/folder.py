"""One network is one folder: a plain `torchmd-train --conf train.yaml`, resumed from its own checkpoints, and its losses.

A folder holds `train.yaml`; `log.txt`, what the trainer printed; `training`, what it wrote; and, once it ended,
`result.json`. A trainer that outlives the process that started it keeps the lock of its folder: who comes next waits for it.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write

CONFIGURATION, OUTPUT, TRAINING, RESULT = "train.yaml", "log.txt", "training", "result.json"
LOSSES = ("val_total_mse_loss", "val_total_cross_entropy_loss")  # whichever the training has
EPOCH, TESTED = "epoch", "test_total_l1_loss"
# of the test of TorchMD-Net 3.1 after a training that went on and did not get better: the training itself is done
_ONLY_THE_TEST = "RuntimeError: Error while merging hparams: the keys ['load_model']"
_TIMES, _LOCK = "times.json", ".training.lock"
_POLL = 0.2  # s
_GRACE = 20.0  # s between the signals that ask a trainer to end and that end it
_FEWEST = 5  # epochs, of which anything can be said about convergence
_LONGEST = 400  # characters of a reason
_STILL_FALLING = 0.01  # relative improvement over the last fifth of the epochs, above which a loss has not converged

_stopping = threading.Event()


@dataclass(frozen=True)
class Result:
    """How a training ended.

    Attributes
    ----------
    status : str
        "trained", "failed" (for good) or "ended" (by a signal; it is tried again).
    reason : str
        Of a failure.
    first_epoch_loss, best_loss : float or None
        Of validation, after the first epoch and the smallest.
    best_epoch, epochs : int
        From 1; finished ones.
    converged : bool
        Whether the smallest loss improved by less than a hundredth in the last fifth of five epochs or more.
    wall_seconds : float
        Of all attempts.
    """

    status: str
    reason: str = ""
    first_epoch_loss: float | None = None
    best_loss: float | None = None
    best_epoch: int = 0
    epochs: int = 0
    converged: bool = False
    wall_seconds: float = 0.0


def train_network(folder: str, threads: int) -> dict[str, Any]:
    """Train the network of a folder, or go on with it; returns its `Result` as a dictionary.

    Nothing is done if it has ended. Several processes may ask for the same folder: one trains, the others wait.
    """
    path = Path(folder)
    with _alone(path) as handle:
        known = load_result(path)
        if known is not None and known.status != "ended":
            return asdict(known)
        code = 0 if _is_finished(path) else _run(path, threads, handle)
        if _stopping.is_set():
            return asdict(Result("ended", "the sweep was stopped"))
        result = _result(path, code)
        with atomic_write(path / RESULT) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        return asdict(result)


def load_result(folder: Path) -> Result | None:
    """The result of a folder; None where there is none, or it is damaged."""
    try:
        return Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def stop_all() -> None:
    """End the trainers that this process runs; their results stay open."""
    _stopping.set()


def may_run_again() -> None:
    """Trainers may be started again after `stop_all`."""
    _stopping.clear()


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Wait for the lock of a folder; yields its descriptor, with which a trainer inherits the lock."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if _stopping.wait(_POLL):
                    raise GeomGNNError(f"{folder} is still being trained by an earlier sweep.") from None
        yield handle
    finally:
        os.close(handle)


def command(folder: Path) -> list[str]:
    """The command that trains the network of a folder, or goes on from its last checkpoint."""
    beside = Path(sys.executable).parent / "torchmd-train"
    script = str(beside) if beside.is_file() else shutil.which("torchmd-train")
    if script is None:
        raise GeomGNNError("There is no torchmd-train beside this Python. Run: pip install torchmd-net")
    last = last_checkpoint(folder)
    # first, as it brings the settings of the checkpoint, which those of the folder replace
    resume = [] if last is None else ["--load-model", str(last)]
    return [script, *resume, "--conf", str(folder / CONFIGURATION)]


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the latest epoch, if there is any."""
    found = {
        int(match[1]): path for path in (folder / TRAINING).glob("*.ckpt") if (match := re.match(r"epoch=(\d+)-", path.name))
    }
    return found[max(found)] if found else None


def _run(folder: Path, threads: int, lock: int) -> int:
    """Run the trainer to its end; returns its exit code."""
    times = _times(folder)
    _save_times(folder, [*times, [time.time(), None]])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    with open(folder / OUTPUT, "ab") as log:
        # a session of its own: Ctrl-C is for the sweep, which ends it
        process = subprocess.Popen(
            command(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, pass_fds=[lock],
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not _stopping.is_set():
                time.sleep(_POLL)
        finally:
            _end(process)
    _save_times(folder, [*times, [_began(folder), time.time()]])
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)


def _times(folder: Path) -> list[list[float | None]]:
    """Begin and end of every attempt so far; one that was killed ended when it last wrote something."""
    try:
        times = json.loads((folder / _TIMES).read_text(encoding="utf-8"))
        files = [path for path in (folder / TRAINING, folder / OUTPUT) if path.exists()]
        last = max((path.stat().st_mtime for path in files), default=0.0)
        return [[began, max(began, last) if ended is None else ended] for began, ended in times]
    except (OSError, ValueError, TypeError):
        return []


def _began(folder: Path) -> float | None:
    return json.loads((folder / _TIMES).read_text(encoding="utf-8"))[-1][0]


def _save_times(folder: Path, times: list[list[float | None]]) -> None:
    with atomic_write(folder / _TIMES) as temporary:
        temporary.write_text(json.dumps(times) + "\n", encoding="utf-8")


def losses(folder: Path) -> dict[int, float]:
    """Epoch, from 0, -> validation loss, of all attempts; a later one counts where an epoch was repeated."""
    found: dict[int, float] = {}
    for row in _rows(folder):
        with suppress(KeyError, ValueError, TypeError):
            found[int(float(row[EPOCH]))] = float(_loss(row))
    return dict(sorted(found.items()))


def _loss(row: Mapping[str, Any]) -> str:
    return next((row[name] for name in LOSSES if row.get(name)), "")


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of the metrics of all attempts, in their order; `torchmd-train` renames those of earlier ones."""
    files = sorted((folder / TRAINING).glob("metrics_*.csv")) + [folder / TRAINING / "metrics.csv"]
    for file in files:
        if file.is_file():
            with open(file, newline="", encoding="utf-8", errors="replace") as lines:
                yield from csv.DictReader(lines)


def _is_finished(folder: Path) -> bool:
    """Whether the trainer has come to its end, a test, without anybody who waited for it."""
    last = folder / TRAINING / "metrics.csv"
    if not last.is_file() or (folder / RESULT).exists():
        return False
    with open(last, newline="", encoding="utf-8", errors="replace") as lines:
        rows = list(csv.DictReader(lines))
    return bool(rows) and bool(rows[-1].get(TESTED)) and not _loss(rows[-1])


def _result(folder: Path, code: int) -> Result:
    seconds = sum((ended or 0) - (began or 0) for began, ended in _times(folder))
    found = losses(folder)
    common: dict[str, Any] = {"epochs": len(found), "wall_seconds": round(seconds, 1)}
    if code < 0:
        with suppress(ValueError):
            name = signal.Signals(-code).name
            return Result("ended", f"it was ended by {name}; SIGKILL mostly means that memory ran out", **common)
    if code:
        reason = reason_in((folder / OUTPUT).read_text(encoding="utf-8", errors="replace"), code)
        if not (found and reason.startswith(_ONLY_THE_TEST)):
            return Result("failed", reason, **common)
    # nan and infinity
    wrong = next((epoch for epoch, loss in found.items() if not loss < float("inf")), None)
    if wrong is not None:
        return Result("failed", f"it diverged: the validation loss became {found[wrong]:g} in epoch {wrong + 1}", **common)
    if 0 not in found:
        return Result("failed", "there is no validation loss after the first epoch", **common)
    best = min(found, key=lambda epoch: found[epoch])
    earlier = [loss for epoch, loss in found.items() if epoch < len(found) - max(1, len(found) // 5)]
    converged = len(found) >= _FEWEST and min(earlier) - found[best] < _STILL_FALLING * found[best]
    return Result("trained", "", found[0], found[best], best + 1, converged=converged, **common)


def reason_in(log: str, code: int) -> str:
    """Why a trainer failed: the last line of its output that names an error, else its last lines."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    text = errors[-1] if errors else " ".join(lines[-3:]) or f"it ended with code {code} and printed nothing"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
