"""The interface of biases on collective variables, and the biases by name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from openmm_geomgnn.plugins import find
from openmm_geomgnn.sampling.opes.method import OPES


@runtime_checkable
class Bias(Protocol):
    """The interface of a bias, such as `OPES`: constant settings, and pure functions of a state.

    A state is any immutable object that can be pickled, since it is sent to the processes of the walkers. A bias can be
    pickled as well, and knows no engine. It should be a dataclass whose fields are its settings, which are then compared
    when a run is continued.

    A bias may have more: with ``adaptive = True``, ``observe(state, s, walker)`` gets the values s (d,) of every outer step
    of every walker and returns the state; ``deposits(state, s)`` returns the centres (W, d), widths (W, d) and heights (W,)
    that `update` adds, which are written to the file KERNELS.

    `openmm_geomgnn.testing.BiasSuite` tests a class of one's own.

    Attributes
    ----------
    pace : int
        Outer steps from one `update` to the next.
    """

    if TYPE_CHECKING:
        # read-only for type checkers, since the settings of a bias may be frozen
        @property
        def pace(self) -> int:
            """Outer steps from one `update` to the next."""
    else:
        pace: int

    def initial_state(self, dimension: int | None = None, n_walkers: int = 1) -> Any:
        """The state before the first update, for d = `dimension` components and walkers that share the bias."""

    def update(self, state: Any, s: np.ndarray) -> Any:
        """The state after an update with all walkers at s (n_walkers, d); `state` is not changed."""

    def bias(self, state: Any, s: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol at s (d,) and its derivatives (d,) by the components of s."""

    def diagnostics(self, state: Any) -> Mapping[str, float]:
        """Figures for columns of COLVAR, always under the same names."""

    def to_arrays(self, state: Any) -> Mapping[str, np.ndarray]:
        """The state as arrays of numbers, for a checkpoint."""

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The state that `to_arrays` wrote, bit for bit."""


BIASES: dict[str, type[Bias]] = {"opes": OPES}


def get_bias(name: str) -> type[Bias]:
    """The class of the bias called `name`: one of `BIASES`, or of an installed package (see `plugins`).

    Raises
    ------
    PluginError
        If there is no such bias (the message has the nearest known one), or its package cannot be used.

    Examples
    --------
    >>> from openmm_geomgnn.sampling import get_bias
    >>> get_bias("opes")(barrier=40, pace=500).biasfactor
    16.03631...
    """
    return find("bias", name, BIASES, _problem)


def _problem(bias: object) -> str | None:
    """What is wrong with the bias of another package."""
    if not isinstance(bias, type):
        return "it is not a class"
    missing = [method for method in _METHODS if not callable(getattr(bias, method, None))]
    return f"its class has no {', '.join(missing)}" if missing else None


_METHODS = ("initial_state", "update", "bias", "diagnostics", "to_arrays", "from_arrays")
