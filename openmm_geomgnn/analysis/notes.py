"""Notes about the numbers of a run that its reader should not overlook."""

from typing import Any

import numpy as np

# a run whose mean temperature exceeds this multiple of its target did not sample its ensemble
HOT_MEAN = 1.1
# of frames further than three standard deviations above the target, about 0.5 % are due to chance
HOT_SHARE = 0.02


def reading_notes(summary: dict[str, Any], delta_F_reason: str = "") -> list[str]:
    """Write sentences about the summary of `analyse_biased_run`; those that start with "Warning" need attention.

    delta_F_reason: why delta F or its error is unknown.
    """
    notes = []
    target, mean = summary["target_temperature_K"], summary["mean_temperature_K"]
    if not np.isfinite(mean):
        notes.append("The COLVAR data have no temperature, so it is not known whether the bias heated the system.")
    elif mean > HOT_MEAN * target:
        notes.append(
            f"Warning: the mean temperature is {mean:.0f} K at a target of {target:.0f} K. The bias heats the system, "
            "and heat fakes crossings: do not trust them. Use a softer CV, a larger sigma or a smaller time step."
        )
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
    if summary["effective_sample_size"] < 100:
        notes.append(
            f"Warning: the weights leave an effective sample of {summary['effective_sample_size']:.0f} frames of "
            f"{summary['frames_used']}. The free energies rest on few frames."
        )
    if summary["crossing_variable"] != "none":
        notes += _difference_notes(summary, delta_F_reason)
    return notes


def _difference_notes(summary: dict[str, Any], reason: str) -> list[str]:
    notes = []
    if summary["crossings"] == 0:
        notes.append("Warning: the biased run never crossed from one core to the other.")
    if reason:
        notes.append(f"Warning: about the free-energy difference: {reason}")
    elif summary["crossings_used"] < 5:
        notes.append(
            f"Warning: only {summary['crossings_used']} crossings lie after the discarded start, so the error bar of the "
            "free-energy difference is itself uncertain."
        )
    first, second, error = (summary[f"delta_F_{key}"] for key in ("first_half", "second_half", "error"))
    # the difference of two halves has about twice the standard error of the whole
    if abs(first - second) > 5 * error:
        notes.append(
            f"Warning: the free-energy difference is {first:.1f} kJ/mol in the first half of the data and "
            f"{second:.1f} in the second, further apart than its error bar of {error:.1f} explains: the bias has not "
            "settled. Simulate longer, or discard more of the start."
        )
    return notes
