"""Runs of walkers in lockstep, with a common bias or without: their output, and how an interrupted run continues."""

import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import remove_leftovers
from openmm_geomgnn.locks import locked
from openmm_geomgnn.sampling.bias import Bias
from openmm_geomgnn.sampling.checkpoint import NAME, Checkpoint, check_fingerprint, load_checkpoint, save_checkpoint
from openmm_geomgnn.sampling.interrupt import DelayedInterrupt
from openmm_geomgnn.sampling.outputs import Outputs, Written, check_outputs, cut_back, trajectory_path
from openmm_geomgnn.sampling.plan import Plan, Prepared, Progress, prepare
from openmm_geomgnn.sampling.pool import WalkerPool
from openmm_geomgnn.sampling.walker import WalkerReport
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

# fields in which the walkers of one run may differ
_OWN_FIELDS = ("structure", "index", "positions", "minimise", "equilibration")


@dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run.

    time: ps per walker. state: final state of the bias, or None. colvar, kernels (None without a bias), trajectories: paths.
    began: time in ps at which the last session began; equal to `time` if there was nothing left to do.
    """

    folder: Path
    time: float
    state: Any
    colvar: Path
    kernels: Path | None
    trajectories: list[Path]
    began: float


class Runner:
    """Runs walkers that share one bias, or none, and continues the run that it finds in its folder.

    Steps are outer steps of the integrator (see WalkerSpec), also in the `pace` of the bias: every `bias.pace` outer steps
    all walkers report their positions, the bias deposits kernels, and all continue under the new bias. The result does not
    depend on the speed of the walkers, and is the same for the same seeds.

    The folder gets COLVAR (time, walker, CV, bias, its diagnostics, temperature; the bias is the one that acted), KERNELS
    (the kernels as deposited, before any merging), trajectory.<walker>.dcd, and checkpoint.safetensors.

    Parameters
    ----------
    specs : list of WalkerSpec
        One per walker, with index 0, 1, ... They may differ in where they start.
    bias : optional
        A bias of openmm_geomgnn.sampling.
    folder : path
        Where to write. A run found there is continued, to the bit on the Reference platform; it must have been begun with
        the same CV, bias and settings.
    length : float, openmm Quantity or str
        ps per walker, in all. A run that is at least as long is not repeated; a longer length prolongs it.
    checkpoint_interval : float, openmm Quantity or str
        ps.
    progress : callable, optional
        Called with a Progress after every block.
    max_heating : float
        A run whose mean temperature exceeds that of the thermostat by more than this factor, and by more than chance
        explains (see HeatGuard), is stopped, and does not go on when asked again.

    Raises
    ------
    GeomGNNError
        If settings are invalid, or walkers do not fit each other or the run in the folder; from `run` also if another
        process is working in the folder, a walker fails or the system heats up.
    """

    def __init__(
        self,
        specs: Sequence[WalkerSpec],
        bias: Bias | None = None,
        folder: PathLike = "run",
        length: float = 1000.0,
        *,
        checkpoint_interval: float = 10.0,
        progress: Callable[[Progress], None] | None = None,
        max_heating: float = 1.02,
    ) -> None:
        specs = [replace(spec, bias=bias, failures=str(folder)) for spec in specs]
        _check_walkers(specs)
        self._plan = Plan(specs, length, checkpoint_interval, max_heating)
        self.folder = Path(folder)
        self._progress = progress

    def run(self) -> RunResult:
        """Run to the end, from where an earlier session stopped. Returns a RunResult.

        Ctrl-C stops after the current block, with a checkpoint and a KeyboardInterrupt; a second one stops immediately.
        """
        prepared = prepare(self._plan.specs)
        with locked(self.folder):
            return self._run(prepared)

    def check(self) -> None:
        """Raise a GeomGNNError if `run` could not continue from the content of the folder; nothing is changed."""
        self._find(prepare(self._plan.specs).fingerprint)

    def _run(self, prepared: Prepared) -> RunResult:
        plan, checkpoint = self._plan, self._find(prepared.fingerprint)
        remove_leftovers(self.folder)
        if checkpoint is not None and checkpoint.step >= plan.total:
            # it may have been killed when it was being prolonged
            cut_back(self.folder, checkpoint.written)
            state = None if plan.bias is None else plan.bias.from_arrays(checkpoint.bias)
            return self._result(checkpoint.step, state, checkpoint.step)
        began = 0 if checkpoint is None else checkpoint.step
        with WalkerPool(prepared.specs, began) as pool:
            if checkpoint is None:
                pool.call("start", [()] * plan.n_walkers)
            else:
                pool.call("restore", [(state,) for state in checkpoint.walkers])
            session = _Session(plan, self.folder, pool, prepared, checkpoint)
            session.run(self._progress)
        return self._result(session.step, session.state, began)

    def _find(self, prints: Mapping[str, Any]) -> Checkpoint | None:
        path = self.folder / NAME
        if not path.exists():
            if (self.folder / "COLVAR").exists():
                raise GeomGNNError(
                    f"{self.folder} holds a COLVAR file but no checkpoint, so it belongs to something else. Choose another "
                    "folder for the run."
                )
            return None
        checkpoint = load_checkpoint(path)
        if checkpoint.step == 0:
            # a run that failed in its first block has nothing to continue from, so it may begin again with better settings
            return None
        check_fingerprint(checkpoint.fingerprint, prints, path)
        plan = self._plan
        check_outputs(self.folder, checkpoint.written, plan.n_walkers if plan.specs[0].frame_interval else 0)
        return checkpoint

    def _result(self, step: int, state: Any, began: int) -> RunResult:
        plan, folder = self._plan, self.folder
        return RunResult(
            folder=folder,
            time=step * plan.outer_step,
            state=state,
            colvar=folder / "COLVAR",
            kernels=None if plan.bias is None else folder / "KERNELS",
            trajectories=[trajectory_path(folder, spec.index) for spec in plan.specs if spec.frame_interval],
            began=began * plan.outer_step,
        )


class _Session:
    """One uninterrupted stretch of a run, with the state that changes in it."""

    def __init__(
        self, plan: Plan, folder: Path, pool: WalkerPool, prepared: Prepared, checkpoint: Checkpoint | None
    ) -> None:
        self.plan, self.pool = plan, pool
        self.bias: Any = plan.bias  # it may have more than its interface
        self.outputs: Any = None
        self.path, self.prints = folder / NAME, prepared.fingerprint
        facts = pool.facts[0]
        self.state = None
        if self.bias is not None:
            self.state = (
                self.bias.initial_state(dimension=facts.dimension, n_walkers=plan.n_walkers)
                if checkpoint is None
                else self.bias.from_arrays(checkpoint.bias)
            )
            # of a bias that deposits kernels: afterwards its state does not show them, as they may have been merged
            self.deposits = getattr(self.bias, "deposits", None)
        self.began = self.step = 0 if checkpoint is None else checkpoint.step
        self.guard = plan.heat_guard(facts.degrees_of_freedom, checkpoint)
        fields, kernel_fields = self._fields(facts.dimension)
        if checkpoint is None:
            # before anything else is written: a folder with files but without a checkpoint is somebody else's
            self._save()
        self.outputs = Outputs(
            folder,
            prepared.topology,
            fields,
            kernel_fields,
            plan.n_walkers,
            plan.outer_step,
            plan.specs[0].frame_interval,
            None if checkpoint is None else checkpoint.written,
        )
        self.saved = self.step

    def _fields(self, dimension: int) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        if self.bias is None:
            return ("time", "walker", "temperature"), None
        label = type(self.bias).__name__.lower()
        names = [f"cv.{i + 1}" for i in range(dimension)]
        diagnostics = [f"{label}.{name}" for name in self.bias.diagnostics(self.state)]
        kernel_fields = ("time", "walker", *names, *(f"sigma_{name}" for name in names), "height")
        fields = ("time", "walker", *names, f"{label}.bias", *diagnostics, "temperature")
        return fields, kernel_fields if self.deposits else None

    def run(self, progress: Callable[[Progress], None] | None = None) -> None:
        """Continue to the end of the run. progress: called with a Progress after every block."""
        plan, started = self.plan, clock.perf_counter()
        with self.outputs, DelayedInterrupt() as interrupt:
            # a run that was stopped because it was too hot only continues if more is allowed now
            self.guard.check(self.step * plan.outer_step)
            while self.step < plan.total:
                self._advance()
                if self.step >= plan.total or self.step - self.saved >= plan.checkpoint_steps:
                    self._save()
                try:
                    self.guard.check(self.step * plan.outer_step)
                    if progress is not None:
                        progress(self._where(clock.perf_counter() - started))
                    if interrupt.came:
                        raise KeyboardInterrupt
                except (GeomGNNError, KeyboardInterrupt):
                    if self.saved < self.step:
                        self._save()
                    raise

    def _advance(self) -> None:
        """Run one block: to the next deposition, or to the end of the run."""
        plan = self.plan
        n_steps = plan.steps_from(self.step)
        reports = self.pool.call("advance", [(self.state, n_steps)] * plan.n_walkers)
        self.step += n_steps
        rows, kernels = self._rows(reports), None
        if self.bias is not None:
            for walker, report in enumerate(reports):
                for s in () if report.observations is None else report.observations:
                    self.state = self.bias.observe(self.state, s, walker)
            if self.step % plan.block == 0:
                kernels = self._deposit(np.stack([report.s for report in reports]))
        self.outputs.write(rows, kernels, reports)
        self.guard.add(rows[:, -1])

    def _rows(self, reports: Sequence[WalkerReport]) -> np.ndarray:
        """Make the rows of COLVAR, ordered by time and then walker."""
        blocks = []
        for walker, report in enumerate(reports):
            ones = np.ones((len(report.rows), 1))
            extra = () if self.bias is None else self.bias.diagnostics(self.state).values()
            parts = [report.rows[:, :1], walker * ones, report.rows[:, 1:-1], *(value * ones for value in extra)]
            blocks.append(np.concatenate([*parts, report.rows[:, -1:]], axis=1))
        return np.stack(blocks, axis=1).reshape(-1, blocks[0].shape[1])

    def _deposit(self, s: np.ndarray) -> np.ndarray | None:
        """Update the bias at s (n_walkers, d) and return the rows of KERNELS; None if no kernels were deposited."""
        before, self.state = self.state, self.bias.update(self.state, s)
        if self.state is before or self.deposits is None:
            return None
        centres, sigmas, heights = self.deposits(before, s)
        time = np.full(len(centres), self.step * self.plan.outer_step)
        return np.column_stack([time, np.arange(len(centres)), centres, sigmas, heights])

    def _save(self) -> None:
        bias = {} if self.bias is None else self.bias.to_arrays(self.state)
        walkers = self.pool.call("checkpoint", [()] * self.plan.n_walkers)
        written = Written()
        if self.outputs is not None:
            self.outputs.sync()
            written = self.outputs.written
        save_checkpoint(self.path, Checkpoint(self.step, bias, walkers, self.guard.to_arrays(), written, self.prints))
        self.saved = self.step

    def _where(self, seconds: float) -> Progress:
        step = self.plan.outer_step
        return Progress(
            time=self.step * step,
            length=self.plan.total * step,
            started=self.began * step,
            temperature=self.guard.mean,
            diagnostics={} if self.bias is None else self.bias.diagnostics(self.state),
            seconds=seconds,
        )


def _check_walkers(specs: Sequence[WalkerSpec]) -> None:
    if not specs:
        raise GeomGNNError("The run has no walkers: give one WalkerSpec or more.")
    indices = [spec.index for spec in specs]
    if indices != list(range(len(specs))):
        raise GeomGNNError(f"The walkers are numbered {indices}, but must be 0 to {len(specs) - 1}: set index.")
    first = specs[0]
    if first.colvar_interval == 0:
        raise GeomGNNError("colvar_interval is 0, so the run would not be recorded: give the outer steps between rows.")
    for spec in specs[1:]:
        for name in spec.__dataclass_fields__:
            if name not in _OWN_FIELDS and getattr(spec, name) != getattr(first, name):
                raise GeomGNNError(
                    f"Walker {spec.index} has {name} = {getattr(spec, name)!r} and walker 0 has {getattr(first, name)!r}: "
                    f"the walkers of one run may only differ in {', '.join(_OWN_FIELDS)}."
                )
