"""A student of the CV of a run: a small network that costs a hundredth, biased in its place where it reproduces it."""

from collections.abc import Sequence
from typing import Any

import mdtraj

from openmm_geomgnn.cli.distill import STAGES
from openmm_geomgnn.cli.names import NETWORK_FILE
from openmm_geomgnn.cli.progress import echo, progress_bars
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cv.distillation import DistillSettings, distill
from openmm_geomgnn.cv.kernel_widths import basin_widths
from openmm_geomgnn.cv.verdict import FINE_ERROR, GOOD_R2, missed, turning_errors
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.unfinished import Unfinished

LABELS = 8000, 16000  # conformations that the network is asked about: first, and where that makes no student to be biased
EPOCHS = 80
# sets of held-out conformations, and the R2 that a student needs there to be biased in place of its network
LEAST_R2 = {"held_out": GOOD_R2, "displaced": 0.9, "turned": 0.9}
LARGEST_TURNING_ERROR = 0.5  # of the change along turns about bonds, by which a bias crosses


def student_or_network(protocol: Protocol, network: Any, trajectories: Sequence[mdtraj.Trajectory]) -> Any:
    """Distil a fitted CV, which is kept in its own file; returns the student, or the network where that is no good.

    Where it is no good it is distilled once more, from more conformations. Why it is no good is said, and stands in the
    training information as `student_refused`. A distillation that was stopped goes on where it was.
    """
    path = protocol.output / NETWORK_FILE
    network.save(path)
    attempts = list(zip(LABELS, (Unfinished(path), Unfinished(f"{path}.again")), strict=True))
    refused = ""
    for labels, unfinished in attempts:
        if refused:
            echo(f"The student is not used: {refused}. It is made once more, from {labels} conformations.")
        settings = DistillSettings(labels=labels, epochs=EPOCHS, seed=protocol.seed)
        with progress_bars(STAGES) as progress:
            student = distill(network, trajectories[0].topology, trajectories, settings, progress, unfinished)
        refused = why_not(student)
        if not refused:
            break
    for _, unfinished in attempts:
        unfinished.remove()
    if refused:
        echo(f"The student is not used: {refused}. The network itself is biased.")
        network.training_information["student_refused"] = refused
        return network
    return student


def why_not(student: Any) -> str:
    """Why a student is not to be biased in place of its network; "" if it is."""
    facts = student.training_information
    found, widths = facts["distillation"], basin_widths(facts)
    for name, least in LEAST_R2.items():
        if name in found and missed(found[name], least, widths):
            return (
                f"its R2 on {name.replace('_', '-')} frames is {format_values(found[name]['r2'])}, below {least:g}, and its "
                f"error more than {FINE_ERROR:g} of the width of kernels"
            )
    turning = turning_errors(found)
    if max(turning) > LARGEST_TURNING_ERROR:
        return (
            f"its change along turns about bonds, by which a bias crosses, is off by {format_values(turning)} of the "
            f"network's, more than {LARGEST_TURNING_ERROR:g}"
        )
    return ""
