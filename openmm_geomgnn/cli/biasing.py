"""The biased simulation of a protocol: whether its CV can be biased, the bias, and the walkers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from openmm_geomgnn.cli.molecule import walker_spec
from openmm_geomgnn.cli.names import CV_FILE, TOPOLOGY
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.run_folder import as_begun, evaluated_every, settle
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cli.settings.protocol_checks import LONGEST_BIAS_STEP, is_resonant
from openmm_geomgnn.cv.kernel_widths import basin_widths, is_too_stiff, kernel_widths, narrowest_width
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.verdict import GRADES, in_words
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.sampling.opes import OPES
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

MOST_EVERY = 4  # beyond, kicks heat bonds and angles whatever the CV is like: docs/concepts/multiple-time-steps.md


class NotBiasable(GeomGNNError):
    """A CV that cannot be biased, or is not worth it."""


def check_verdict(cv: Any, protocol: Protocol) -> None:
    """Raise a NotBiasable if the verdict on a CV is worse than the protocol accepts."""
    verdict = cv.training_information.get("verdict")
    if verdict is not None and GRADES.index(verdict["grade"]) > GRADES.index(protocol.run.accept.replace("-", " ")):
        raise NotBiasable(
            f"The CV is {in_words(verdict)}. To bias it nevertheless, set run.accept: {verdict['grade'].replace(' ', '-')}."
        )


def kernel_width(cv: Any, protocol: Protocol) -> dict[str, Any]:
    """Widths of the bias's kernels, where the protocol leaves them open: {"sigma": ..., "sigma_min": ...}.

    Raises
    ------
    NotBiasable
        If the narrowest stable kernel is much wider than a basin: the bias could not build up.
    """
    facts, bias, step = cv.training_information, protocol.bias, protocol.schedule.bias_step
    spread = basin_widths(facts)
    narrowest = narrowest_width(facts["rate_300K_per_ps"], step, protocol.system.temperature)
    if bias.sigma is None and bias.sigma_min is None and is_too_stiff(narrowest, spread).any():
        more_often = "Evaluate the bias more often (run.every: 1), fit" if protocol.every > 1 else "Fit"
        raise NotBiasable(
            f"The CV is too stiff to bias: at {1000 * step:g} fs between evaluations (run.every times system.timestep) the "
            f"narrowest kernel that does not heat the system is {format_values(narrowest)} wide, but the CV fluctuates by "
            f"only {format_values(spread)} within a basin. {more_often} a softer CV (a longer cv.softening, or "
            "gradient_penalty with a vampnet), or set bias.sigma yourself."
        )
    return kernel_widths(spread, narrowest, bias.sigma, bias.sigma_min, adaptive=bias.adaptive_stride is not None)


def make_bias(cv: Any, protocol: Protocol) -> Any:
    """The bias of a protocol on a CV, which says how wide the kernels of OPES are.

    Raises NotBiasable if the CV is too stiff, see `kernel_width`.
    """
    return protocol.make_bias(**(kernel_width(cv, protocol) if protocol.bias.method == "opes" else {}))


def largest_every(cv: Any, protocol: Protocol) -> int:
    """The most MD steps between two evaluations of the bias for which kernels need not be wider.

    Those are kernels as wide as a basin, or as the protocol says. Of a student it is 1: it costs too little for that to
    matter. Of a bias of another package, whose kernels are not known, it is 1 as well.
    """
    facts, bias, system = cv.training_information, protocol.bias, protocol.system
    if "distillation" in facts or bias.method != "opes" or is_resonant(system):
        return 1
    narrowest = narrowest_width(facts["rate_300K_per_ps"], system.timestep, system.temperature)
    given = bias.sigma if bias.sigma_min is None else bias.sigma_min
    widths = basin_widths(facts) if given is None else np.asarray(given)
    longest = min(LONGEST_BIAS_STEP, bias.pace, protocol.run.colvar_interval)
    return max(1, int(min(MOST_EVERY, longest / system.timestep, (widths / narrowest).min()) + 1e-6))


def with_every(protocol: Protocol, cv: Any) -> Protocol:
    """The protocol with `run.every` as a number: that with which its biased run was begun, or `largest_every` of its CV."""
    protocol = as_begun(protocol)
    return evaluated_every(protocol, largest_every(cv, protocol)) if protocol.run.every == "auto" else protocol


def decide_every(protocol: Protocol, cv: Any) -> Protocol:
    """As `with_every`; what was decided is said, and stands in the protocol in the folder. Else a hint is given."""
    decided = with_every(protocol, cv)
    if protocol.run.every != "auto":
        if largest_every(cv, protocol) > protocol.every:
            echo(f"The CV is soft enough for run.every: {largest_every(cv, protocol)}, which costs less.")
        return protocol
    settle(decided)
    steps = f"every {decided.every} steps" if decided.every > 1 else "at every step"
    echo(f"The bias is evaluated {steps} of {1000 * protocol.system.timestep:g} fs (run.every: auto).")
    return decided


def in_one_line(bias: Any) -> str:
    """What a bias is, for a line of progress."""
    if isinstance(bias, OPES):
        return f"OPES: barrier {bias.barrier:g} kJ/mol, sigma {format_values(bias.sigma)}, biasfactor {bias.biasfactor:.3g}"
    return f"Bias: {bias}"


def run_biased(protocol: Protocol, bias: Any, title: str = "Biased run") -> None:
    """Run the biased simulation of a protocol to its end, with a progress bar of this title."""
    _compile(protocol, _biased_spec(protocol, 0))
    with bar(title) as update:
        biased_runner(
            protocol,
            bias,
            lambda p: update(p.time, p.length, f"{p.temperature:.0f} K, {p.diagnostics.get('nker', 0):.0f} kernels"),
        ).run()


def biased_runner(protocol: Protocol, bias: Any, progress: Callable[..., None] | None = None) -> Runner:
    """The Runner of the biased simulation of a protocol, in its folder."""
    schedule = protocol.schedule
    return Runner(
        [_biased_spec(protocol, index) for index in range(protocol.run.walkers)],
        bias,
        protocol.output,
        schedule.length * schedule.bias_step,
        checkpoint_interval=schedule.checkpoint_interval * schedule.bias_step,
        progress=progress,
    )


def _biased_spec(protocol: Protocol, index: int) -> WalkerSpec:
    schedule = protocol.schedule
    return walker_spec(
        protocol,
        index,
        cv_path=str(protocol.output / CV_FILE),
        every=protocol.every,
        colvar_interval=schedule.colvar_interval,
        frame_interval=schedule.frame_interval,
    )


def _compile(protocol: Protocol, spec: WalkerSpec) -> None:
    """Compile the network's kernels before the walkers start, all of which would do so at once."""
    path: Any = spec.cv_path
    bound = CollectiveVariable.load(path).bind(protocol.output / TOPOLOGY, spec.precision, spec.engine)
    bound.warm_up(lambda: echo("Compiling kernels for this network (once, about 20 s) ..."))
