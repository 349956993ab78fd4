"""Unbiased trajectories: training data for collective variables, and references for biased runs."""

import json
import time as clock
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import Closing, atomic_write, remove_leftovers, replace_file, sync_folder
from openmm_geomgnn.locks import locked
from openmm_geomgnn.sampling.checkpoint import (
    Checkpoint,
    check_fingerprint,
    load_checkpoint,
    save_checkpoint,
    start_fingerprint,
)
from openmm_geomgnn.sampling.heating import HeatGuard
from openmm_geomgnn.sampling.interrupt import DelayedInterrupt
from openmm_geomgnn.sampling.outputs import (
    Frames,
    TrajectoryWriter,
    Written,
    check_frames,
    read_dcd,
    read_description,
    trajectory_path,
)
from openmm_geomgnn.sampling.plan import Plan, Prepared, Progress, prepare
from openmm_geomgnn.sampling.pool import WalkerPool
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

if TYPE_CHECKING:
    import mdtraj


@dataclass(frozen=True, eq=False)
class UnbiasedTrajectory:
    """One walker's trajectory.

    path: its DCD file. times: (n,) in ps. frames: `outputs.Frames`, with their boxes. mean_temperature: K, over the rows
    that the walker reports.
    """

    path: Path
    times: np.ndarray
    frames: Frames
    mean_temperature: float

    def trajectory(self, topology: "mdtraj.Topology") -> "mdtraj.Trajectory":
        """Make an mdtraj.Trajectory with times and boxes. topology: mdtraj.Topology."""
        return self.frames.trajectory(topology, self.times)


def run_unbiased(
    specs: Sequence[WalkerSpec],
    length: float,
    folder: PathLike,
    *,
    processes: int = 1,
    checkpoint_interval: float = 10.0,
    progress: Callable[[Progress], None] | None = None,
    max_heating: float = 1.02,
) -> list[UnbiasedTrajectory]:
    """Run independent walkers without a bias and return their trajectories.

    A run that was stopped or killed continues from its last checkpoint, bit for bit on the Reference platform. A walker that
    fails does not stop the others.

    Parameters
    ----------
    specs : list of WalkerSpec
        They may differ in everything, including temperature and molecule. Their `index` appears in the names of the files
        and in the seeds, so it must be different for each.
    length : float, openmm Quantity or str
        ps of each.
    folder : path
        Gets trajectory.<index>.dcd, and trajectory.<index>.json that says how it was made. A complete trajectory that was
        made in the same way is not made again; an incomplete one has another name, and a checkpoint beside it.
    processes : int
        Walkers at a time.
    checkpoint_interval : float, openmm Quantity or str
        ps.
    progress : callable, optional
        Called with a Progress, whose times are sums over the walkers to be made.
    max_heating : float
        As in Runner.

    Returns
    -------
    list of UnbiasedTrajectory
        In the order of specs.

    Raises
    ------
    GeomGNNError
        If a walker fails (raised after the others are done), an existing trajectory, complete or not, was made in another
        way, or another process is working in the folder.
    """
    folder = Path(folder)
    specs = [replace(spec, bias=None, failures=str(folder)) for spec in specs]
    plans = [Plan([spec], length, checkpoint_interval, max_heating) for spec in specs]
    if len({spec.index for spec in specs}) < len(specs):
        raise GeomGNNError(f"The walkers are numbered {[spec.index for spec in specs]}: give each an index of its own.")
    if any(spec.frame_interval == 0 for spec in specs):
        raise GeomGNNError("frame_interval is 0, so no trajectory would be written: give the steps between frames.")
    if processes < 1:
        raise GeomGNNError(f"processes is {processes}, but must be 1 or more.")
    with locked(folder):
        making = [_Making(folder, plan) for plan in plans]
        todo = [one for one in making if not one.check()]
        remove_leftovers(folder)
        for one in making:
            one.files.tidy()
        _make(todo, processes, _Counter(progress, todo))
        return [_read(folder, spec) for spec in specs]


def fingerprints(specs: Sequence[WalkerSpec], length: float) -> list[dict[str, Any]]:
    """Describe what the runs of `run_unbiased` with these arguments depend on: a flat dict for each, which JSON can hold.

    Raises GeomGNNError if they cannot be prepared.
    """
    return [_prepared(Plan([replace(spec, bias=None)], length)).fingerprint for spec in specs]


def check_made(specs: Sequence[WalkerSpec], prints: Sequence[Mapping[str, Any]], folder: PathLike) -> None:
    """Raise a GeomGNNError if a trajectory in a folder, complete or not, was not made as `fingerprints` say."""
    for spec, own in zip(specs, prints, strict=True):
        _Files(Path(folder), spec.index).check(own)


def begun_length(folder: PathLike, index: int) -> float | None:
    """Length in ps of a walker's trajectory in a folder, complete or not; None without one."""
    prints = _Files(Path(folder), index).fingerprint()
    return None if prints is None else prints["number of steps"] * prints["timestep"]


def _prepared(plan: Plan) -> Prepared:
    """Prepare the walker of a plan, with everything that its trajectory depends on as its fingerprint."""
    prepared, spec = prepare(plan.specs), plan.specs[0]
    prints = prepared.fingerprint | {"number of steps": plan.total, **start_fingerprint(spec), "index": spec.index}
    return prepared._replace(fingerprint=prints)


class _Files:
    """The files of one trajectory.

    A trajectory under its final name is complete; until then a partial one grows, with a checkpoint beside it.
    """

    def __init__(self, folder: Path, index: int) -> None:
        self.trajectory = trajectory_path(folder, index)
        self.description = folder / f"trajectory.{index}.json"
        self.partial = folder / f".trajectory.{index}.partial.dcd"
        self.checkpoint = folder / f".trajectory.{index}.partial.safetensors"

    @property
    def complete(self) -> bool:
        return self.description.exists() and self.trajectory.exists()

    def fingerprint(self) -> Mapping[str, Any] | None:
        """Fingerprint of the existing trajectory, complete or not; None without one."""
        if self.complete:
            return self.described()["fingerprint"]
        return load_checkpoint(self.checkpoint).fingerprint if self.checkpoint.exists() else None

    def described(self) -> dict[str, Any]:
        """The content of the description."""
        return read_description(self.description, self.trajectory)

    def check(self, prints: Mapping[str, Any]) -> None:
        """Raise a GeomGNNError if its fingerprint is not `prints`, or it lacks frames."""
        if self.complete:
            check_fingerprint(self.described()["fingerprint"], prints, self.trajectory)
        elif self.checkpoint.exists():
            saved = load_checkpoint(self.checkpoint)
            check_fingerprint(saved.fingerprint, prints, self.checkpoint)
            if saved.written.frames:
                check_frames(self.partial, saved.written.frames)

    def finish(self, prints: Mapping[str, Any], mean_temperature: float) -> None:
        """Give a partial trajectory that has reached its length its final name."""
        with atomic_write(self.description) as temporary:
            content = {"fingerprint": prints, "mean_temperature": mean_temperature}
            temporary.write_text(json.dumps(content, indent=1) + "\n")
        replace_file(self.partial, self.trajectory)
        self.tidy()

    def tidy(self) -> None:
        """Remove the checkpoint of a trajectory that is complete."""
        if self.complete:
            self.checkpoint.unlink(missing_ok=True)


def _read(folder: Path, spec: WalkerSpec) -> UnbiasedTrajectory:
    files = _Files(folder, spec.index)
    frames = read_dcd(files.trajectory)
    times = np.arange(1, len(frames) + 1) * (spec.frame_interval * spec.outer_step)
    return UnbiasedTrajectory(files.trajectory, times, frames, files.described()["mean_temperature"])


class _Making(Closing):
    """A trajectory that is being made.

    Call `check`, `begin`, then `send` and `receive` in turn until it is `done`, then `finish`.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.plan, self.prepared = plan, _prepared(plan)
        (self.spec,) = self.prepared.specs
        self.files = _Files(folder, self.spec.index)
        self.step = 0
        self._checkpoint: Checkpoint | None = None
        self._guard: HeatGuard | None = None
        self._writer: Any = None
        self._pool: Any = None
        self._frames = 0
        self._pending: int | None = None

    @property
    def done(self) -> bool:
        return self.step == self.plan.total

    @property
    def temperature(self) -> float:
        """Mean of the recent temperatures in K; NaN if it is not known."""
        return np.nan if self._guard is None else self._guard.mean

    def check(self) -> bool:
        """Whether the trajectory is complete; if not, `step` is where it continues.

        Raises GeomGNNError if an existing trajectory was made in another way.
        """
        self.files.check(self.prepared.fingerprint)
        if not self.files.complete and self.files.checkpoint.exists():
            self._checkpoint = load_checkpoint(self.files.checkpoint)
            self.step, self._frames = self._checkpoint.step, self._checkpoint.written.frames
        return self.files.complete

    def begin(self, separate: bool) -> None:
        """Open the trajectory, and make the walker if there is something left to do."""
        topology, step, interval = self.prepared.topology, self.plan.outer_step, self.spec.frame_interval
        self._writer = TrajectoryWriter(self.files.partial, topology, step, interval, self._frames)
        if not self.done:
            self._pool = WalkerPool([self.spec], self.step, separate)

    def send(self) -> None:
        """Let the walker start or continue, or advance by a block of steps."""
        if self._pending is None:
            if self.spec.colvar_interval:
                self._guard = self.plan.heat_guard(self._pool.facts[0].degrees_of_freedom, self._checkpoint)
            # a run that was stopped because it was too hot only continues if more is allowed now
            self._check_heat()
            self._pending = 0
            restart = () if self._checkpoint is None else (self._checkpoint.walkers[0],)
            self._pool.send("restore" if restart else "start", [restart])
        else:
            self._pending = self.plan.steps_from(self.step)
            self._pool.send("advance", [(None, self._pending)])

    def receive(self) -> None:
        """Receive the walker's report, and save a checkpoint when it is due."""
        (report,) = self._pool.receive()
        if not self._pending:
            return
        self.step += self._pending
        self._writer.write(report.frames, report.boxes)
        self._frames += len(report.frames)
        if self._guard is not None:
            self._guard.add(report.rows[:, -1])
        saved = 0 if self._checkpoint is None else self._checkpoint.step
        if self.done or self.step - saved >= self.plan.checkpoint_steps:
            self.save()
        self._check_heat()

    def _check_heat(self) -> None:
        if self._guard is None:
            return
        try:
            self._guard.check(self.step * self.plan.outer_step)
        except GeomGNNError:
            self.save()
            raise

    def save(self) -> None:
        """Write a checkpoint unless there is one of this step already."""
        if self.step == (0 if self._checkpoint is None else self._checkpoint.step):
            return
        (walker,) = self._pool.call("checkpoint", [()])
        heat: dict[str, np.ndarray] = {} if self._guard is None else self._guard.to_arrays()
        written, prints = Written(frames=self._frames), self.prepared.fingerprint
        self._checkpoint = Checkpoint(self.step, {}, [walker], heat, written, prints)
        self._writer.sync()
        sync_folder(self.files.partial.parent)
        save_checkpoint(self.files.checkpoint, self._checkpoint)

    def finish(self) -> None:
        """Give the trajectory its final name."""
        self.close()
        heat = {} if self._checkpoint is None else self._checkpoint.heat
        mean = float(heat["sum"] / heat["count"]) if heat and heat["count"] else float("nan")
        self.files.finish(self.prepared.fingerprint, mean)

    def close(self) -> None:
        for part in (self._pool, self._writer):
            if part is not None:
                part.close()


def _make(todo: list[_Making], processes: int, report: Callable[[list[_Making]], None]) -> None:
    """Make trajectories, several at a time; a failure does not stop the others. report: called after every block."""
    waiting = list(todo)
    active: list[_Making] = []
    errors: list[GeomGNNError] = []
    separate = min(processes, len(todo)) > 1

    def each(making: list[_Making], method: str, *arguments: Any) -> None:
        for one in list(making):
            try:
                getattr(one, method)(*arguments)
            except GeomGNNError as error:
                errors.append(error)
                making.remove(one)
                one.close()

    with DelayedInterrupt() as interrupt, ExitStack() as stack:
        while waiting or active:
            fresh = [stack.enter_context(waiting.pop(0)) for _ in range(min(len(waiting), processes - len(active)))]
            each(fresh, "begin", separate)
            active += fresh
            each([one for one in active if one.done], "finish")
            active = [one for one in active if not one.done]
            each(active, "send")
            each(active, "receive")
            report(active)
            if interrupt.came:
                each(active, "save")
                raise KeyboardInterrupt
    if len(errors) > 1:
        raise GeomGNNError(f"{errors[0]} (And {len(errors) - 1} more of {len(todo)} walkers failed.)") from errors[0]
    if errors:
        raise errors[0]


class _Counter:
    """Sums up the progress of all trajectories."""

    def __init__(self, progress: Callable[[Progress], None] | None, todo: list[_Making]) -> None:
        self._progress, self._todo = progress, todo
        self._length = sum(one.plan.total * one.plan.outer_step for one in todo)
        self._started, self._clock = self._time(), clock.perf_counter()

    def _time(self) -> float:
        return sum(one.step * one.plan.outer_step for one in self._todo)

    def __call__(self, active: list[_Making]) -> None:
        if self._progress is None or not active:
            return
        self._progress(
            Progress(
                time=self._time(),
                length=self._length,
                started=self._started,
                temperature=float(np.mean([one.temperature for one in active])),
                diagnostics={},
                seconds=clock.perf_counter() - self._clock,
            )
        )
