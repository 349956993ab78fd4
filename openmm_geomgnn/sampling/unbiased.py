"""Unbiased trajectories: training data for collective variables, and what biased runs are compared with."""

import hashlib
import json
import os
import time as clock
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.locks import locked
from openmm_geomgnn.sampling.checkpoint import check_fingerprint
from openmm_geomgnn.sampling.heating import HeatGuard
from openmm_geomgnn.sampling.outputs import Frames, TrajectoryWriter, read_dcd, trajectory_path
from openmm_geomgnn.sampling.pool import WalkerPool
from openmm_geomgnn.sampling.runner import UNBIASED_BLOCK, DelayedInterrupt, Progress, prepare, whole_steps
from openmm_geomgnn.units import positive


@dataclass(frozen=True, eq=False)
class UnbiasedTrajectory:
    """One walker's trajectory. path: its DCD file. times: (n,) in ps. frames: `outputs.Frames`, with their boxes.
    mean_temperature: K, over the rows that the walker reports."""

    path: Path
    times: np.ndarray
    frames: Frames
    mean_temperature: float

    def trajectory(self, topology):
        """As an mdtraj.Trajectory with times and boxes. topology: of mdtraj."""
        return self.frames.trajectory(topology, self.times)


def run_unbiased(specs, length, folder, *, processes=1, progress=None, max_heating=1.1):
    """Run walkers without a bias, each by itself, and return their trajectories.

    Parameters
    ----------
    specs : list of WalkerSpec, which may differ in everything, temperature and molecule too. Their `index` is not used
        for counting, but for the names of the files and for the seeds: it must be different for each.
    length : ps of each.
    folder : gets trajectory.<index>.dcd, and trajectory.<index>.json that says how it was made. A trajectory that is there
        complete, and was made in the same way, is not made again.
    processes : walkers at a time.
    progress : called with a Progress, whose times are sums over the walkers to be made.
    max_heating : as in Runner.

    Returns
    -------
    list of UnbiasedTrajectory, in the order of specs.

    Raises
    ------
    GeomGNNError : a walker fails, a trajectory that is there was made in another way, or another process is at work in the
        folder.
    """
    length = positive(length, "length", "ps")
    folder = Path(folder)
    specs = [replace(spec, bias=None, failures=str(folder)) for spec in specs]
    if len({spec.index for spec in specs}) < len(specs):
        raise GeomGNNError(f"The walkers are numbered {[spec.index for spec in specs]}: give each an index of its own.")
    if any(spec.frame_interval == 0 for spec in specs):
        raise GeomGNNError("frame_interval is 0, so no trajectory would be written: give the steps between frames.")
    if processes < 1:
        raise GeomGNNError(f"processes is {processes}, but must be 1 or more.")
    with locked(folder):
        todo = []
        for spec in specs:
            ready, topology, prints = _prepared(spec, length)
            if not _complete(folder, spec, prints):
                todo.append((ready, topology, prints))
        batches = [todo[i : i + processes] for i in range(0, len(todo), processes)]
        counter = _Counter(progress, len(todo) * length)
        for batch in batches:
            _run_batch(batch, length, folder, counter, max_heating)
        return [_read(folder, spec) for spec in specs]


def fingerprints(specs, length):
    """What the runs of `run_unbiased` with these arguments depend on: a flat dict, as JSON holds it, for each.

    Raises GeomGNNError where they cannot be prepared.
    """
    return [_prepared(replace(spec, bias=None), length)[2] for spec in specs]


def check_made(specs, prints, folder):
    """Raise a GeomGNNError where a trajectory in a folder was made in another way than `fingerprints` says."""
    for spec, own in zip(specs, prints, strict=True):
        _complete(Path(folder), spec, own)


def _prepared(spec, length):
    """The spec with its system made, the topology, and what the run depends on."""
    (ready,), topology, prints = prepare([spec])
    return ready, topology, prints | {"number of steps": whole_steps(length, spec.outer_step), **_start(spec)}


def _start(spec):
    positions = None if spec.positions is None else np.asarray(spec.positions, dtype=np.float64).tobytes()
    content = Path(spec.structure).read_bytes() if positions is None else positions
    start = {"start positions": hashlib.sha256(content).hexdigest()[:16]}
    return start | {name: getattr(spec, name) for name in ("minimise", "equilibration", "index")}


def _description(folder, spec):
    return folder / f"trajectory.{spec.index}.json"


def _complete(folder, spec, prints):
    path = _description(folder, spec)
    if not path.exists() or not trajectory_path(folder, spec.index).exists():
        return False
    check_fingerprint(json.loads(path.read_text())["fingerprint"], prints, trajectory_path(folder, spec.index))
    return True


def _read(folder, spec):
    path = trajectory_path(folder, spec.index)
    frames = read_dcd(path)
    described = json.loads(_description(folder, spec).read_text())
    times = np.arange(1, len(frames) + 1) * (spec.frame_interval * spec.outer_step)
    return UnbiasedTrajectory(path, times, frames, described["mean_temperature"])


def _run_batch(batch, length, folder, counter, max_heating):
    """Walkers side by side until all have their length."""
    specs = [spec for spec, _, _ in batch]
    totals = [whole_steps(length, spec.outer_step) for spec in specs]
    done, temperatures = [0] * len(batch), [[] for _ in batch]
    partial = [folder / f".trajectory.{spec.index}.partial.dcd" for spec in specs]
    with ExitStack() as stack:
        interrupt = stack.enter_context(DelayedInterrupt())
        pool = stack.enter_context(WalkerPool(specs))
        guards = [_guard(spec, facts, max_heating) for spec, facts in zip(specs, pool.facts, strict=True)]
        writers = [
            stack.enter_context(TrajectoryWriter(path, topology, spec.outer_step, spec.frame_interval))
            for path, (spec, topology, _) in zip(partial, batch, strict=True)
        ]
        pool.call("start", [()] * len(batch))
        while done != totals:
            steps = [min(UNBIASED_BLOCK, total - n) for total, n in zip(totals, done, strict=True)]
            reports = pool.call("advance", [(None, n) for n in steps])
            for i, report in enumerate(reports):
                done[i] += steps[i]
                writers[i].write(report.frames, report.boxes)
                temperatures[i].extend(report.rows[:, -1])
                if guards[i] is not None:
                    guards[i].add(report.rows[:, -1])
                    guards[i].check(done[i] * specs[i].outer_step)
            counter.add(sum(n * spec.outer_step for n, spec in zip(steps, specs, strict=True)), temperatures)
            if interrupt.came:
                raise KeyboardInterrupt
    for i, (spec, _, prints) in enumerate(batch):
        os.replace(partial[i], trajectory_path(folder, spec.index))
        mean = float(np.mean(temperatures[i])) if temperatures[i] else float("nan")
        # last: the description says that the trajectory is complete
        with atomic_write(_description(folder, spec)) as temporary:
            temporary.write_text(json.dumps({"fingerprint": prints, "mean_temperature": mean}, indent=1) + "\n")


def _guard(spec, facts, max_heating):
    if not spec.colvar_interval:
        return None
    interval = spec.colvar_interval * spec.outer_step
    return HeatGuard(spec.temperature, facts.degrees_of_freedom, spec.friction, interval, 1, max_heating)


class _Counter:
    """Adds up what all walkers have done, for the progress."""

    def __init__(self, progress, length):
        self._progress, self._length, self._done = progress, length, 0.0
        self._started = clock.perf_counter()

    def add(self, time, temperatures):
        self._done += time
        if self._progress is None:
            return
        recent = [rows[-1] for rows in temperatures if rows]
        self._progress(
            Progress(
                time=self._done,
                length=self._length,
                started=0.0,
                temperature=float(np.mean(recent)) if recent else float("nan"),
                diagnostics={},
                seconds=clock.perf_counter() - self._started,
            )
        )
