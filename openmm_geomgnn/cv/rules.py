"""What settings of a fit must fit together, for the fit and for the files of settings; nothing heavy is imported."""

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

REWEIGHTINGS = ("rescaled-time", "static", "none")
# by how much a lag time may miss a whole number of frames: trajectory files keep times in float32
_LAG_TOLERANCE = 1e-3


class SettingMismatch(GeomGNNError):
    """Settings that do not fit each other; `setting` is the name of the one to look at first."""

    def __init__(self, message: str, setting: str):
        super().__init__(message)
        self.setting = setting


def is_whole(frames: float) -> bool:
    """Whether a lag time of so many frames is a whole number of them, to 0.1 %."""
    return abs(frames - max(1, round(frames))) <= _LAG_TOLERANCE * max(1, round(frames))


def lag_in_frames(lagtime: float, frame_interval: float) -> int:
    """The lag time as a whole number of frames; both in ps.

    Raises
    ------
    GeomGNNError
        If it is shorter than the time between frames or, by more than 0.1 %, not a multiple of it; the nearest is named.
    """
    ratio = lagtime / frame_interval
    frames = max(1, round(ratio))
    if not is_whole(ratio):
        problem = "shorter than" if ratio < 1 else "not a multiple of"
        raise GeomGNNError(
            f"The lag time is {lagtime:g} ps, {problem} the {frame_interval:g} ps between frames. The nearest possible lag "
            f"time is {frames * frame_interval:g} ps."
        )
    return frames


GIRSANOV = (
    "Girsanov reweighting needs the probability of the noise that was drawn under the other force, which does not exist for "
    "LangevinMiddleIntegrator: it adds its noise between two half steps of the positions, so that paths with and without "
    "the bias have no common density. Use rescaled-time, or static."
)


def check_reweighting(name: str) -> None:
    """Raise a GeomGNNError unless there is such a way of counting biased frames."""
    if name.lower() == "girsanov":
        raise GeomGNNError(GIRSANOV)
    if name not in REWEIGHTINGS:
        raise GeomGNNError(
            f"Unknown reweighting '{name}'; the choices are {', '.join(REWEIGHTINGS)}.{did_you_mean(name, REWEIGHTINGS)}"
        )


def check_parts(
    estimator: str, mixer: str, n_components: int, pca: int | None, softening: float = 0.0, reversible: bool = True
) -> None:
    """Raise a SettingMismatch unless an estimator can be used with this mixer and with these settings of its own."""
    if estimator == "vampnet":
        if mixer == "none":
            raise SettingMismatch(
                "estimator: vampnet trains the weights of a mixer, but mixer: none has none. Use mixer: mlp or mixer: "
                "attention, or estimator: linear.",
                "estimator",
            )
        return
    if mixer != "none":
        raise SettingMismatch(
            f"mixer: {mixer} has weights, which estimator: {estimator} does not train. Use estimator: vampnet, or mixer: "
            "none.",
            "mixer",
        )
    if estimator == "linear" and pca is not None and n_components > pca:
        raise SettingMismatch(
            f"{n_components} components cannot be made of {pca} principal components (pca). Raise pca.", "components"
        )
    if softening and not reversible:
        raise SettingMismatch(
            "softening is for the reversible estimator only: set reversible: true, or softening: 0.", "softening"
        )
