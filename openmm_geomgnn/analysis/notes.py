"""Notes about the numbers of a run that its reader should know besides the verdict of `verdict.judge_run`."""

from typing import Any

import numpy as np

# of frames further than three standard deviations above the target, about 0.5 % are due to chance
HOT_SHARE = 0.02
# effective frames below which free energies rest on few
FEW_FRAMES = 100


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
