"""The state of OPES between depositions, and its conversion to arrays for a checkpoint and back."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.opes.arguments import box_of


@dataclass(frozen=True, eq=False)
class OPESState:
    """Everything OPES remembers: enough to continue bit for bit. Its arrays are read-only.

    centres, sigmas: (K, d). log_heights: (K,). log_W, log_W2: logarithms of the sums of the weights and of their
    squares. n: samples counted so far, from 1. Z: the normalisation. sigma0: (1, d), the reference widths of the kernel
    heights, which all walkers share (d = 0 while unknown); (0, d) while an adaptive sigma is still being measured.
    a (n_walkers,), m and M2 (n_walkers, d): steps seen, mean and sum of squares of each walker's adaptive sigma.
    """

    centres: np.ndarray
    sigmas: np.ndarray
    log_heights: np.ndarray
    log_W: float
    log_W2: float
    n: int
    Z: float
    sigma0: np.ndarray
    a: np.ndarray
    m: np.ndarray
    M2: np.ndarray
    # (method, KernelSum): the kernels arranged for evaluation, made at first use from the fields above
    _evaluator: tuple | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            getattr(self, name).flags.writeable = False

    def __reduce__(self) -> tuple[type, tuple]:
        return OPESState, tuple(getattr(self, name) for name in _STORED)

    @classmethod
    def empty(cls, log_W: float, n_walkers: int, adaptive: bool) -> "OPESState":
        """The state before the first deposition, of unknown dimension; adaptive: whether sigma is yet to be measured."""
        none = np.zeros((0, 0))
        return cls(
            centres=none,
            sigmas=none,
            log_heights=np.zeros(0),
            log_W=log_W,
            log_W2=2 * log_W,
            n=1,
            Z=1.0,
            sigma0=np.zeros((0 if adaptive else 1, 0)),
            a=np.zeros(n_walkers, dtype=np.int64),
            m=np.zeros((n_walkers, 0)),
            M2=np.zeros((n_walkers, 0)),
        )

    @property
    def dimension(self) -> int | None:
        """Number of CV components, or None while it is unknown."""
        return self.centres.shape[1] or None

    @property
    def n_walkers(self) -> int:
        """Number of walkers that share the bias."""
        return len(self.a)


# of an `OPES`, on which its kernels depend
SETTINGS = ("barrier", "biasfactor", "temperature", "explore", "kernel_cutoff", "adaptive")
_STORED = tuple(entry.name for entry in fields(OPESState) if entry.init)
_ARRAYS = ("centres", "sigmas", "log_heights", "sigma0", "a", "m", "M2")
_SCALARS = ("log_W", "log_W2", "n", "Z")
_INTEGERS = ("n", "a")


def state_arrays(state: OPESState) -> dict[str, np.ndarray]:
    """Convert the state to a dict of float64 and int64 ndarrays."""
    return _as_arrays({name: getattr(state, name) for name in _STORED})


def settings_arrays(opes: Any, d: int | None) -> dict[str, np.ndarray]:
    """What else the kernels of a state depend on: settings of an `OPES`, and the periods of d components."""
    lows, lengths = box_of(opes.periods)
    periods = np.zeros((d or 0, 2)) if lows is None else np.stack([lows, lows + lengths], axis=1)
    return {"settings": np.array([float(getattr(opes, name)) for name in SETTINGS]), "periods": periods}


def checked_arrays(arrays: Mapping[str, Any], extra: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Get the arrays of a state from `arrays`, which must also hold those named in `extra`.

    Raises GeomGNNError if one is missing, or one of the state is not finite.
    """
    missing = [name for name in (*_STORED, *extra) if name not in arrays]
    if missing:
        raise GeomGNNError(f"The saved OPES state lacks {', '.join(missing)}: it is not one, or it was cut short.")
    values = _as_arrays({name: arrays[name] for name in _STORED})
    broken = [name for name, value in values.items() if not np.isfinite(value).all()]
    if broken:
        raise GeomGNNError(f"The saved OPES state is not finite in {', '.join(broken)}: use an earlier checkpoint.")
    return values


def state_from_arrays(values: Mapping[str, np.ndarray], adaptive: bool) -> OPESState:
    """Make a state from the result of `checked_arrays`; adaptive: whether its sigma is measured.

    Raises GeomGNNError if the arrays do not fit each other.
    """
    kernels, d = values["centres"].shape if values["centres"].ndim == 2 else (0, 0)
    walkers = values["a"].size
    expected = {"centres": (kernels, d), "sigmas": (kernels, d), "log_heights": (kernels,), "a": (walkers,)}
    expected |= {"m": (walkers, d), "M2": (walkers, d)} | dict.fromkeys(_SCALARS, ())
    expected["sigma0"] = (0 if adaptive and not values["sigma0"].size else 1, d)
    wrong = [name for name, shape in expected.items() if values[name].shape != shape]
    if wrong or not walkers:
        listing = ", ".join(f"{name} {values[name].shape}" for name in expected)
        raise GeomGNNError(f"The arrays of the saved OPES state do not fit: {listing}. Use an earlier checkpoint.")
    return OPESState(**{**values, **{name: values[name].item() for name in _SCALARS}})


def check_same_settings(saved: Mapping[str, np.ndarray], mine: Mapping[str, np.ndarray], named: Iterable[str]) -> None:
    """Raise a GeomGNNError that names the first of the arrays `mine` that differs in `saved`.

    named: the names of the numbers in the array "settings", for the message.
    """
    for name, value in mine.items():
        # not to the last bit: the same barrier in other units may differ by a rounding error
        if np.shape(saved[name]) != value.shape or not np.allclose(saved[name], value, rtol=1e-9, atol=0):
            label = f"{name} ({', '.join(named)})" if name == "settings" else name
            raise GeomGNNError(
                f"The saved OPES state was written with {label} = {np.asarray(saved[name]).tolist()}, but this "
                f"OPES has {value.tolist()}: continue with the same, or start afresh."
            )


def _as_arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(v, dtype=np.int64 if name in _INTEGERS else np.float64) for name, v in values.items()}
