"""Notes about the numbers of a run that its reader should know besides the verdict of `verdict.judge_run`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# of frames further than three standard deviations above the target, about 0.5 % are due to chance
HOT_SHARE = 0.02
# effective frames below which free energies rest on few
FEW_FRAMES = 100
# excess of the mean temperature, by the target, from which weights are in doubt, in runs that are long enough to know it, ns
WARM, LONG_ENOUGH = 0.0075, 2.0


def is_warm(summary: Mapping[str, Any]) -> bool:
    """Whether a run was long enough to know that it was so much warmer than its target that its weights are in doubt."""
    return heating(summary, LONG_ENOUGH) > WARM


def heating(summary: Mapping[str, Any], shortest: float) -> float:
    """How far the mean temperature is above the target, by the target; nan if unknown, or of less than `shortest` ns."""
    mean, target, length = (
        summary.get(key) or np.nan for key in ("mean_temperature_K", "target_temperature_K", "biased_ns")
    )
    return mean / target - 1 if length >= shortest else np.nan


def reading_notes(summary: dict[str, Any], delta_F_reason: str = "") -> list[str]:
    """Write sentences about the summary of `analyse_biased_run`; those that start with "Warning" need attention.

    delta_F_reason: why delta F or its error is unknown.
    """
    notes = []
    if not np.isfinite(summary["mean_temperature_K"]):
        notes.append("The COLVAR data have no temperature, so it is not known whether the bias heated the system.")
    if summary["hot_frame_share"] > HOT_SHARE:
        notes.append(
            f"Warning: {100 * summary['hot_frame_share']:.1f} % of the frames are hotter than "
            f"{summary['hot_threshold_K']:.0f} K; less than 1 % are expected from the fluctuation of the temperature."
        )
    if is_warm(summary):
        excess = summary["mean_temperature_K"] - summary["target_temperature_K"]
        notes.append(
            f"Warning: on average it was {excess:.1f} K warmer than its target. That heat is work of the bias, most of it "
            "along the CV, while weights assume the target, so free energies may be further off than their errors: one run "
            "that was 3 K too warm was off by 2.7 kJ/mol at an error of 0.5. Wider kernels (bias.sigma) or a longer "
            "bias.pace heat less."
        )
    if summary["n_kernels"] <= 2:
        notes.append(
            f"Warning: the bias has {summary['n_kernels']:.0f} kernels only. Sigma may be wider than the spread of the "
            "CV in a basin, so that all kernels merge into one and the bias never climbs: choose a smaller sigma."
        )
    if summary["effective_sample_size"] < FEW_FRAMES:
        notes.append(
            f"Warning: the weights leave an effective sample of {summary['effective_sample_size']:.0f} frames of "
            f"{summary['frames_used']}. The free energies rest on few frames."
        )
    if delta_F_reason:
        notes.append(f"Warning: about the free-energy difference: {delta_F_reason}")
    return notes
