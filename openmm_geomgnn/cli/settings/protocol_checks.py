"""What must fit together in a `Protocol`, which calls these checks."""

import math
import re
import warnings
from typing import Any

from openmm_geomgnn.cli.settings.fields import SettingError
from openmm_geomgnn.cli.settings.sections import BiasSection
from openmm_geomgnn.cv.rules import lag_in_frames
from openmm_geomgnn.errors import GeomGNNError

LONGEST_BIAS_STEP = 0.008  # ps; beyond, multiple time stepping resonates and heats the system
LIGHTEST_HYDROGEN = 1.5  # amu, for time steps of 4 fs and more
LONGEST_FREE_TIMESTEP = 0.0012  # ps, times the root of the hydrogen mass: without constraints
FEWEST_LAGS = 5  # in a training run
FEWEST_DEPOSITIONS = 10  # in a biased run


def check_lag(lag: float, frame_interval: float) -> None:
    """Raise a SettingError unless the lag time is a whole number of frames; both in ps."""
    try:
        lag_in_frames(lag, frame_interval)
    except GeomGNNError as error:
        raise SettingError(str(error), "cv", "lag") from error


def check_dynamics(protocol: Any) -> None:
    """Raise a SettingError for time steps that cannot be, and a warning of doubtful ones."""
    system, every = protocol.system, protocol.every
    femtoseconds = 1000 * system.timestep
    hydrogen = system.hydrogen_mass or 1.008
    if femtoseconds > 3.999 and hydrogen < LIGHTEST_HYDROGEN:
        raise SettingError(
            f"A timestep of {femtoseconds:g} fs needs hydrogens of at least {LIGHTEST_HYDROGEN:g} amu, but they have "
            f"{hydrogen:g} amu. Use hydrogen_mass: 3 amu, or timestep: 2 fs.",
            *("system", "hydrogen_mass"),
        )
    if system.constraints is None and system.timestep > LONGEST_FREE_TIMESTEP * math.sqrt(hydrogen):
        _warn(
            f"timestep is {femtoseconds:g} fs without constraints: bonds to hydrogens of {hydrogen:g} amu vibrate too "
            "fast for it. Use constraints: HBonds, or a shorter timestep."
        )
    outer = every * system.timestep
    if outer > LONGEST_BIAS_STEP + 1e-9 or (every > 1 and is_resonant(system)):
        _warn(
            f"The bias acts every {every} steps of {femtoseconds:g} fs = {1000 * outer:g} fs. So rare a force can heat the "
            "system, and heat fakes crossings. Every 3 steps of 2 fs is safe; else look at the report's temperatures."
        )


def is_resonant(system: Any) -> bool:
    """Whether time steps are so long that a bias at every second one heats bonds."""
    return system.timestep > 0.003999 and system.constraints != "AllBonds"


def check_training_data(protocol: Any) -> None:
    """Raise a SettingError for too little to learn from."""
    unbiased, cv, timestep = protocol.unbiased, protocol.cv, protocol.system.timestep
    if cv.file is not None:
        return
    steps = unbiased.frame_interval / timestep
    if abs(steps - max(1, round(steps))) > 1e-6:
        nearest = max(1, round(steps)) * timestep
        raise SettingError(
            f"frame_interval is {unbiased.frame_interval:g} ps, no multiple of the timestep of {1000 * timestep:g} fs: "
            f"the nearest is {nearest:g} ps.",
            *("unbiased", "frame_interval"),
        )
    check_lag(cv.lag, unbiased.frame_interval)
    if unbiased.length < FEWEST_LAGS * cv.lag * (1 - 1e-9):
        raise SettingError(
            f"length is {unbiased.length:g} ps, less than {FEWEST_LAGS} lag times (cv.lag) of {cv.lag:g} ps: too little to "
            f"learn from. Use at least {FEWEST_LAGS * cv.lag:g} ps, for a small molecule 100 to 200 ps, or a shorter lag.",
            *("unbiased", "length"),
        )
    structures = len(protocol.system.structures)
    frames = structures * math.floor(unbiased.length / unbiased.frame_interval + 1e-6)
    if cv.estimator == "linear" and not cv.auto and cv.pca is not None and frames <= cv.pca:
        raise SettingError(
            f"pca asks for {cv.pca} principal components, but there will be only {frames} frames. Lower pca or "
            "unbiased.frame_interval, or raise unbiased.length.",
            *("cv", "pca"),
        )
    if structures == 1 and protocol.explore is None:
        _warn(
            f"All training data start from one structure, {protocol.system.structures[0].name}. Data of one basin say "
            "nothing of the way to another: give a structure in each basin, or look for others (explore: auto)."
        )


def check_bias(protocol: Any) -> None:
    """Raise a SettingError for a bias that cannot be made."""
    bias, components, step = protocol.bias, protocol.cv.components, protocol.schedule.bias_step
    for name in ("sigma", "sigma_min"):
        widths = getattr(bias, name)
        if isinstance(widths, tuple) and len(widths) != components:
            raise SettingError(
                f"{name} has {len(widths)} entries, but cv.components is {components}: give one for each, or a number.",
                *("bias", name),
            )
    for section, name in (("bias", "pace"), ("run", "colvar_interval")):
        value = getattr(getattr(protocol, section), name)
        if value < step * (1 - 1e-9):
            raise SettingError(
                f"{name} is {value:g} ps, shorter than the {step:g} ps between evaluations of the bias (run.every = "
                f"{protocol.every} steps of {1000 * protocol.system.timestep:g} fs). Use at least {step:g} ps.",
                *(section, name),
            )
    try:
        protocol.make_bias()
    except GeomGNNError as error:
        found = re.match(r"\w*", str(error))
        name = found[0] if found else ""
        raise SettingError(str(error), "bias", *[name] * (name in BiasSection.model_fields)) from error


def check_run(protocol: Any) -> None:
    """Raise a SettingError for a run that is too short, or analysed along what is not there."""
    run, bias, analysis = protocol.run, protocol.bias, protocol.analysis
    if run.length < FEWEST_DEPOSITIONS * bias.pace * (1 - 1e-9):
        raise SettingError(
            f"length is {run.length:g} ps, time for fewer than {FEWEST_DEPOSITIONS} depositions of the bias, one every "
            f"{bias.pace:g} ps (bias.pace). Use at least {FEWEST_DEPOSITIONS * bias.pace:g} ps, or a shorter pace.",
            *("run", "length"),
        )
    if run.frame_interval < run.colvar_interval * (1 - 1e-9):
        raise SettingError(
            f"frame_interval is {run.frame_interval:g} ps, shorter than colvar_interval, {run.colvar_interval:g} ps. "
            "Frames without a row in COLVAR have no weight: use a shorter colvar_interval.",
            *("run", "frame_interval"),
        )
    along = analysis.cores.along if analysis.cores else ""
    if along.startswith("cv.") and not 1 <= int(along[3:]) <= protocol.cv.components:
        raise SettingError(
            f"cores are along {along}, but cv.components is {protocol.cv.components}: they are counted from cv.1.",
            *("analysis", "cores", "along"),
        )


def check_rounds(protocol: Any) -> None:
    """Raise a SettingError for rounds and exploration that do not fit the CV."""
    rounds, explore, bias = protocol.rounds, protocol.explore, protocol.bias
    if protocol.cv.estimator == "progress" and not protocol.learns_from_a_bias:
        raise SettingError(
            "estimator is progress, which takes frames between the states. Add explore: auto, or use linear.",
            *("cv", "estimator"),
        )
    if protocol.cv.file is not None:
        for name, section in (("explore", explore), ("rounds", rounds)):
            if section is not None:
                raise SettingError(f"{name} is for a CV that is learned, but cv.file is one that exists. Remove one.", name)
        return
    if explore is not None and explore.along_cv and (rounds is None or rounds.number < 2):
        raise SettingError(
            "ways has opes, which explores along the CV between rounds, but there are no two rounds. Add rounds: 3, or "
            "remove opes.",
            *("explore", "ways"),
        )
    if explore is not None and explore.frame_interval > protocol.cv.lag:
        raise SettingError(
            f"frame_interval is {explore.frame_interval:g} ps, longer than the lag time (cv.lag) of {protocol.cv.lag:g} ps.",
            *("explore", "frame_interval"),
        )
    if rounds is not None and rounds.length < FEWEST_DEPOSITIONS * bias.pace * (1 - 1e-9):
        raise SettingError(
            f"length is {rounds.length:g} ps, time for fewer than {FEWEST_DEPOSITIONS} depositions of the bias, one every "
            f"{bias.pace:g} ps (bias.pace). Use at least {FEWEST_DEPOSITIONS * bias.pace:g} ps.",
            *("rounds", "length"),
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)
