"""On-the-fly probability enhanced sampling: OPES_METAD and OPES_EXPLORE as pure functions of an immutable state.

Invernizzi & Parrinello, J. Phys. Chem. Lett. 2020, 10.1021/acs.jpclett.0c00497 (METAD) and Invernizzi & Parrinello,
J. Chem. Theory Comput. 2022, 10.1021/acs.jctc.2c00152 (EXPLORE). The force is the exact gradient of the energy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.pickling import pickled_as
from openmm_geomgnn.sampling.opes.arguments import (
    Periods,
    box_of,
    check_values,
    common_dimension,
    read_biasfactor,
    read_count,
    read_energies,
    read_number,
    read_periods,
    read_widths,
    warn,
)
from openmm_geomgnn.sampling.opes.kernel_sum import KernelSum, add_kernel, minimum_image, wrap
from openmm_geomgnn.sampling.opes.ramp import check_ramp, depth, log_epsilon, ramp_arrays
from openmm_geomgnn.sampling.opes.state import (
    SETTINGS,
    OPESState,
    check_same_settings,
    checked_arrays,
    settings_arrays,
    state_arrays,
    state_from_arrays,
)
from openmm_geomgnn.sampling.opes.widths import check_widths, current_widths, effective_size, floor_of, given_sigma
from openmm_geomgnn.units import BOLTZMANN

__all__ = ["OPES", "OPESState"]

T = TypeVar("T")


@pickled_as("OPES")
@dataclass(frozen=True)
class OPES:
    """OPES_METAD, or OPES_EXPLORE with `explore=True`. Immutable, picklable, knows no engine.

    Parameters
    ----------
    barrier : float, openmm Quantity or str
        The highest free-energy barrier to cross: a number in kJ/mol, a Quantity, or text such as "10 kcal/mol".
    pace : int
        Steps between depositions.
    temperature : float, openmm Quantity or str
        K.
    sigma : float or sequence of float, optional
        Initial kernel width in the units of the CV, a number for all components or one per component. When absent it is
        measured: no bias acts until `observe` has seen `adaptive_stride` steps of every walker. Then the root mean square
        of what they measured is the sigma0 of all, so that the weight alone sets the mass of a kernel; later kernels are as
        wide as their own walker's fluctuations.
    sigma_min : float or sequence of float, optional
        Floor of the kernel widths, like sigma.
    biasfactor : float, optional
        By default barrier/kT. `math.inf` is a flat target: it needs a sigma, and is not for EXPLORE.
    explore : bool
        Use OPES_EXPLORE.
    compression_threshold : float
        Kernels closer than this, in units of sigma, are merged; 0 keeps all of them.
    periods : sequence, optional
        One entry per component, None or (low, high).
    adaptive_stride : int, optional
        Steps over which sigma is measured, by default 10*pace.
    kernel_cutoff : float, optional
        Where kernels end, in units of sigma; by default where they fall below exp(-barrier/(p*kT)) (EXPLORE:
        exp(-barrier/kT)).
    ramp : int, optional
        Depositions of each walker over which the bias sets in, see `ramp`; what is sampled meanwhile is not for averages.

    Attributes
    ----------
    kT : float
        kJ/mol.
    p : float
        Prefactor of the bias, 1 - 1/biasfactor (EXPLORE: biasfactor - 1).
    epsilon, log_epsilon : float
        Regularisation of the density, and its logarithm.
    adaptive : bool
        Whether sigma is measured.
    dimension : int or None
        Number of CV components; None while unknown.

    Raises
    ------
    GeomGNNError
        If a parameter is invalid; the message names the likely cause. Doubtful ones give a UserWarning.

    Examples
    --------
    >>> from openmm_geomgnn.sampling import OPES
    >>> opes = OPES(barrier=40, pace=500, temperature=300)
    >>> opes.biasfactor, opes.epsilon, opes.kernel_cutoff
    (16.03631..., 3.73542...e-08, 5.84855...)

    A state does not change: `update` returns a new one, here with a first kernel, of one component, at s = 0.3.

    >>> opes = OPES(barrier=40, pace=500, sigma=0.1)
    >>> state = opes.initial_state(dimension=1)
    >>> opes.bias(state, [0.3])
    (-40.0, array([0.]))
    >>> state = opes.update(state, [0.3])
    >>> opes.bias(state, [0.35])  # V in kJ/mol and dV/ds
    (-0.26057..., array([-10.42285...]))
    """

    barrier: float
    pace: int
    temperature: float = 300.0
    sigma: float | Sequence[float] | None = None
    sigma_min: float | Sequence[float] | None = None
    biasfactor: float | None = None
    explore: bool = False
    compression_threshold: float = 1.0
    periods: Sequence[tuple[float, float] | None] | None = None
    adaptive_stride: int | None = None
    kernel_cutoff: float | None = None
    # not part of a run's fingerprint: a saved state says whether it still matters
    ramp: int = field(default=0, metadata={"fingerprint": False})
    kT: float = field(init=False, repr=False)
    p: float = field(init=False, repr=False)
    epsilon: float = field(init=False, repr=False)
    log_epsilon: float = field(init=False, repr=False)
    adaptive: bool = field(init=False, repr=False)
    dimension: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        def put(name: str, value: T) -> T:
            object.__setattr__(self, name, value)
            return value

        barrier = put("barrier", read_number(self.barrier, "barrier", "kJ/mol"))
        kT = put("kT", BOLTZMANN * put("temperature", read_number(self.temperature, "temperature", "K")))
        put("pace", read_count(self.pace, "pace"))
        put("explore", bool(self.explore))
        put("ramp", read_count(self.ramp, "ramp", zero=True))
        ratio = barrier / kT
        if ratio > 200:
            warn(
                f"A barrier of {barrier:g} kJ/mol is {ratio:.0f} kT at {self.temperature:g} K, more than sampling "
                "along a CV can cross: is it in J/mol, or is your barrier too high? Conformational changes need 20 to "
                "100 kJ/mol."
            )
        given = read_biasfactor(self.biasfactor, barrier, self.temperature, self.explore, self.sigma is None)
        gamma = put("biasfactor", given)
        put("p", gamma - 1.0 if self.explore else 1.0 - 1.0 / gamma)
        put("epsilon", math.exp(put("log_epsilon", -ratio / self.p)))

        cutoff = self.kernel_cutoff
        if cutoff is None:
            cutoff = math.sqrt(2 * ratio if self.explore else 2 * ratio / self.p)
        put("kernel_cutoff", cutoff := read_number(cutoff, "kernel_cutoff"))
        if cutoff < 3.5:
            warn(
                f"Kernels are cut off at {cutoff:.3g} sigma, below 3.5, so the truncation shows in the bias: is your "
                f"barrier ({barrier:g} kJ/mol = {ratio:.3g} kT) too low, or your kernel_cutoff too short?"
            )
        threshold = read_number(self.compression_threshold, "compression_threshold", zero=True)
        put("compression_threshold", threshold)
        if threshold >= cutoff:
            raise GeomGNNError(
                f"compression_threshold is {threshold:g} but must be below kernel_cutoff, {cutoff:.4g} sigma: kernels "
                "out of each other's reach would be merged. Use a threshold near 1 (0 switches merging off)."
            )

        put("sigma", read_widths(self.sigma, "sigma"))
        put("sigma_min", read_widths(self.sigma_min, "sigma_min"))
        put("periods", read_periods(self.periods))
        if put("adaptive", self.sigma is None):
            stride = 10 * self.pace if self.adaptive_stride is None else self.adaptive_stride
            put("adaptive_stride", read_count(stride, "adaptive_stride"))
        elif self.adaptive_stride is not None:
            raise GeomGNNError(
                f"adaptive_stride = {self.adaptive_stride} has no meaning when sigma ({self.sigma}) is given: leave "
                "out one of them."
            )
        put("dimension", common_dimension(sigma=self.sigma, sigma_min=self.sigma_min, periods=self.periods))
        if not self.adaptive:
            check_widths(self)

    def initial_state(self, dimension: int | None = None, n_walkers: int = 1) -> OPESState:
        """The state before the first deposition.

        dimension: number of CV components, by default what sigma, sigma_min or periods say, else fixed by the first
        `observe` or `update`. n_walkers: walkers that share the bias.
        """
        if dimension is not None:
            self._check_dimension(read_count(dimension, "dimension"))
        walkers = read_count(n_walkers, "n_walkers")
        state = OPESState.empty(-self.barrier / self.kT, walkers, self.adaptive)
        dimension = dimension or self.dimension
        return state if dimension is None else self._with_dimension(state, dimension)

    def observe(self, state: OPESState, s: npt.ArrayLike, walker: int = 0) -> OPESState:
        """Account for one bias step of one walker at s (d,), for the adaptive sigma.

        Returns the new state; with a given sigma, the same state. Raises GeomGNNError when s does not fit or is not
        finite.
        """
        if not self.adaptive:
            return state
        if not 0 <= walker < state.n_walkers:
            raise GeomGNNError(
                f"There is no walker {walker}: the state has {state.n_walkers}, counted from 0. Make it with "
                "initial_state(n_walkers=...)."
            )
        s = np.atleast_1d(np.asarray(s, dtype=np.float64))
        state = self._fit(state, s[None], "observe")
        lows, lengths = self._box
        a, m, M2 = state.a.copy(), state.m.copy(), state.M2.copy()
        a[walker] += 1
        delta = minimum_image(s - m[walker], lengths)
        mean = m[walker] + delta / min(int(a[walker]), cast(int, self.adaptive_stride))
        M2[walker] += delta * minimum_image(s - mean, lengths)
        m[walker] = wrap(mean, lows, lengths)
        observed = replace(state, a=a, m=m, M2=M2)
        object.__setattr__(observed, "_evaluator", state._evaluator)
        return observed

    def update(self, state: OPESState, s: npt.ArrayLike, other_bias: float | np.ndarray = 0.0) -> OPESState:
        """Deposit one kernel per walker: call it every `pace` steps, not at step 0.

        s: (d,), or (n_walkers, d). other_bias: energy in kJ/mol of any other bias acting, a number or (n_walkers,); it
        enters the weights. All walkers are weighted under the bias of `state`. While an adaptive sigma is still being
        measured (some walker was observed fewer than `adaptive_stride` times) nothing is deposited or counted, and the
        state is returned as it is.

        Raises GeomGNNError when s does not fit or is not finite, or when the measured sigma is below 1e-6 and there is
        no sigma_min.
        """
        state, new, sums = self._deposition(state, s, other_bias)
        if new is None:
            return state
        lows, lengths = self._box
        kernels = state.centres, state.sigmas, state.log_heights
        for kernel in zip(*new, strict=True):
            kernels = add_kernel(*kernels, kernel, self.compression_threshold, lows, lengths)
        centres, sigmas, log_heights = kernels
        log_norm = math.log(sums["n"]) if self.explore else sums["log_W"]
        total = KernelSum(centres, sigmas, log_heights - log_norm, cast(float, self.kernel_cutoff), lengths)
        Z = float(np.mean(total.density(centres)))
        return replace(state, centres=centres, sigmas=sigmas, log_heights=log_heights, Z=Z, **sums)

    def deposits(
        self, state: OPESState, s: npt.ArrayLike, other_bias: float | np.ndarray = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The kernels that `update` adds, for a record of them: afterwards they may have been merged.

        Arguments and errors are those of `update`. Returns centres (W, d), sigmas (W, d) and heights (W,), of which there
        are none while an adaptive sigma is still being measured. Heights beyond a double are inf.
        """
        state, new, _ = self._deposition(state, s, other_bias)
        if new is None:
            return np.zeros((0, state.centres.shape[1])), np.zeros((0, state.centres.shape[1])), np.zeros(0)
        centres, sigmas, log_heights = new
        with np.errstate(over="ignore"):
            return centres.copy(), sigmas.copy(), np.exp(log_heights)

    def _deposition(
        self, state: OPESState, s: npt.ArrayLike, other_bias: float | np.ndarray
    ) -> tuple[OPESState, tuple[np.ndarray, np.ndarray, np.ndarray] | None, dict[str, Any]]:
        """(state, kernels, sums) of an update.

        state: with its dimension fixed by s. kernels: centres (W, d), sigmas (W, d) and log_heights (W,) of the new ones,
        None while sigma is being measured. sums: new values of other fields of the state, a dict.
        """
        s = np.atleast_1d(np.asarray(s, dtype=np.float64))
        s = s[None] if s.ndim == 1 else s
        state = self._fit(state, s, "update")
        n_walkers, d = s.shape
        if self.adaptive and n_walkers != state.n_walkers:
            raise GeomGNNError(
                f"update got CV values of {n_walkers} walkers but the state measures sigma for {state.n_walkers}: give "
                "one row per walker, and make the state with initial_state(n_walkers=...)."
            )
        if self.adaptive and state.a.min() < self.adaptive_stride:
            return state, None, {}

        log_w = (self._evaluate(state, s)[0] + read_energies(other_bias, n_walkers)) / self.kT
        n = state.n + n_walkers
        log_W = float(np.logaddexp(state.log_W, np.logaddexp.reduce(log_w)))
        log_W2 = float(np.logaddexp(state.log_W2, np.logaddexp.reduce(2 * log_w)))

        sigma0, widths, M2 = current_widths(self, state)
        size = n if self.explore else effective_size(log_W, log_W2)
        sigmas = widths * (size * (d + 2) / 4) ** (-1 / (d + 4))
        floor = floor_of(self, d)
        if floor is not None:
            sigmas = np.maximum(sigmas, floor)
        sigmas = np.broadcast_to(sigmas, s.shape)
        log_heights = np.log(sigma0 / sigmas).sum(axis=1) + (0.0 if self.explore else log_w)
        sums = {"log_W": log_W, "log_W2": log_W2, "n": n, "sigma0": sigma0, "M2": M2}
        return state, (wrap(s, *self._box), sigmas, log_heights), sums

    def bias(self, state: OPESState, s: npt.ArrayLike) -> tuple[Any, np.ndarray]:
        """The bias energy and its exact gradient at s, from the kernels in `state`.

        s: (d,) -> V in kJ/mol (float) and dV/ds (d,); or (F, d) -> V (F,) and dV/ds (F, d). Where nothing was deposited
        V is -barrier (in the ramp less deep), without a force. Values of s that are not finite give NaN.
        """
        s = np.asarray(s, dtype=np.float64)
        if s.ndim == 2:
            return self._evaluate(state, s)
        s = s.reshape(-1)
        kernels = self._kernels(state, len(s))
        if kernels is None:
            return -depth(self, state), np.zeros(len(s))
        return kernels.log_density_at(s, log_epsilon(self, state), self.p * self.kT)

    def diagnostics(self, state: OPESState) -> dict[str, float]:
        """rct: c(t) = kT*ln(W/n) in kJ/mol; zed: Z; neff: (1 + W)^2/(1 + W2); nker: number of kernels."""
        return {
            "rct": self.kT * (state.log_W - math.log(state.n)),
            "zed": state.Z,
            "neff": effective_size(state.log_W, state.log_W2),
            "nker": len(state.centres),
        }

    def to_arrays(self, state: OPESState) -> dict[str, np.ndarray]:
        """The state and the settings it depends on, as a dict of float64 and int64 ndarrays, for a checkpoint."""
        return state_arrays(state) | settings_arrays(self, state.dimension) | ramp_arrays(self)

    def from_arrays(self, arrays: Mapping[str, np.ndarray]) -> OPESState:
        """The state that `to_arrays` wrote, bit for bit.

        Raises GeomGNNError if arrays are missing, misshapen or not finite, or were written with other settings.
        """
        values = checked_arrays(arrays, extra=("settings", "periods"))
        d = values["centres"].shape[-1] if values["centres"].ndim == 2 else 0
        check_same_settings(arrays, settings_arrays(self, self._check_dimension(d or None)), SETTINGS)
        state = state_from_arrays(values, self.adaptive)
        check_ramp(self, arrays, state)
        if not self.adaptive and d:
            check_same_settings({"sigma": state.sigma0}, {"sigma": given_sigma(self, d)}, SETTINGS)
        return state

    def _evaluate(self, state: OPESState, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `bias`, at s (F, d)."""
        kernels = self._kernels(state, s.shape[1])
        if kernels is None:
            return np.full(len(s), -depth(self, state)), np.zeros(s.shape)
        log_density, gradient = kernels.log_density(s, log_epsilon(self, state))
        return self.p * self.kT * log_density, self.p * self.kT * gradient

    def _kernels(self, state: OPESState, dimension: int) -> KernelSum | None:
        """Get the normalised KernelSum of a state; None without kernels. dimension: number of components of s."""
        if dimension != (state.dimension or dimension):
            raise GeomGNNError(f"The CV value has {dimension} components, but the bias has {state.dimension}.")
        if not len(state.centres):
            return None
        cached = state._evaluator
        if cached is None or cached[0] is not self:
            log_norm = (math.log(state.n) if self.explore else state.log_W) + math.log(state.Z)
            heights = state.log_heights - log_norm
            cutoff = cast(float, self.kernel_cutoff)
            cached = self, KernelSum(state.centres, state.sigmas, heights, cutoff, self._box[1])
            object.__setattr__(state, "_evaluator", cached)
        return cached[1]

    def _fit(self, state: OPESState, s: np.ndarray, caller: str) -> OPESState:
        """Check CV values (F, d), and let them fix the dimension of a state that has none yet."""
        check_values(s, caller)
        d = s.shape[1]
        if state.dimension is None:
            return self._with_dimension(state, self._check_dimension(d))
        if d != state.dimension:
            raise GeomGNNError(f"{caller} got a CV value with {d} components, but the bias has {state.dimension}.")
        return state

    def _check_dimension(self, d: T) -> T:
        if d is not None and self.dimension not in (None, d):
            raise GeomGNNError(
                f"The CV has {d} components, but sigma, sigma_min or periods were given for {self.dimension}: give one "
                "entry per component."
            )
        return d

    def _with_dimension(self, state: OPESState, d: int) -> OPESState:
        empty, zeros = np.zeros((0, d)), np.zeros((state.n_walkers, d))
        sigma0 = empty if self.adaptive else given_sigma(self, d)
        return replace(state, centres=empty, sigmas=empty, sigma0=sigma0, m=zeros, M2=zeros)

    @property
    def _box(self) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        return box_of(cast(Periods | None, self.periods))
