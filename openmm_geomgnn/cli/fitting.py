"""What `geomgnn run` and `geomgnn fit` share: settings of a fit, its progress, what is said of the CV."""

from collections.abc import Iterator, Mapping
from typing import Any

from openmm_geomgnn.cli.progress import progress_bars
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.verdict import in_words, turning_errors
from openmm_geomgnn.formatting import count_of, format_values
from openmm_geomgnn.unfinished import Unfinished

# stage of a fit -> description and unit of its progress bar
STAGES = {
    "embed": ("Embedding", "frames"),
    "rates": ("Thermal motion", "frames"),
    "train": ("Training", "epochs"),
    "stiffness": ("Stiffness", "frames"),
}


def fit_settings(section: Any, frame_interval: float, seed: int) -> FitSettings:
    """Make the `FitSettings` of a CV section; `frame_interval` in ps."""
    return FitSettings(
        lagtime=section.lag,
        frame_interval=frame_interval,
        encoder=section.encoder,
        tokens=section.token_spec(),
        mixer=section.mixer,
        mixer_settings=dict(section.mixer_settings),
        estimator=section.estimator,
        n_components=section.components,
        pca=section.pca,
        softening=section.softening if section.reversible else 0.0,
        reversible=section.reversible,
        bounded=section.bounded,
        margin=section.margin,
        even=section.even,
        training=section.training_arguments() if section.estimator == "vampnet" else {},
        seed=seed,
    )


def fit_with_progress(trajectories: Any, topology: Any, settings: FitSettings, unfinished: Unfinished, **more: Any) -> Any:
    """Call `fit_cv` with progress bars; more: its `biases` and `frame_intervals`."""
    with progress_bars(STAGES) as progress:
        return fit_cv(trajectories, topology, settings, progress, unfinished, **more)


def describe(cv: Any) -> Iterator[str]:
    """Yield lines on the quality of a fitted CV, or of a student and its teacher."""
    facts = cv.training_information
    if "distillation" in facts:
        found, turning = facts["distillation"]["held_out"], turning_errors(facts["distillation"])
        r2, gradient_error = format_values(found["r2"]), format_values(found["gradient_error"])
        along = f", along turns {format_values(turning)}" if any(turning) else ""
        origin = f"Student: R2 {r2}, error of the gradient {gradient_error}{along}; its teacher"
    else:
        origin = "CV"
    held_out, error = facts.get("vamp2_held_out"), facts.get("vamp2_held_out_error")
    score = "" if held_out is None else f", held out {held_out:.3f}" + ("" if error is None else f" +- {error:.3f}")
    yield (
        f"{origin}: VAMP-2 {facts['vamp2_training']:.3f}{score} at a lag of {cv.lagtime:g} ps; {_timescales(facts)}; "
        f"spread in a basin {format_values(facts['in_basin_spread'])}; "
        f"stiffness {format_values(facts['rate_300K_per_ps'])} per ps"
    )
    for name, r2, noise in zip(facts.get("targets", ()), facts.get("r2_held_out", ()), facts.get("noise", ()), strict=True):
        yield f"It follows the {name}: R2 {r2:.3f} held out, an error of {noise:.2g} of half the way"
    if "verdict" in facts:
        yield f"Verdict: {in_words(facts['verdict'])}."


def _timescales(facts: Mapping[str, Any]) -> str:
    """List timescales with the transitions behind them, or why there are none; files before version 4 lack them."""
    values = facts["timescales_ps"]
    notes, counts = facts.get("timescale_notes", [""] * len(values)), facts.get("transitions", [None] * len(values))
    shown = [
        note or f"timescale {value:.3g} ps" + ("" if count is None else f" ({count_of(count, 'transition')})")
        for value, note, count in zip(values, notes, counts, strict=True)
    ]
    return shown[0] if len(shown) == 1 else "; ".join(f"cv.{k}: {text}" for k, text in enumerate(shown, start=1))
