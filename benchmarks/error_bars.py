"""Are the error bars of a biased run honest? Free energies of many short runs of OPES on a model with a known answer.

    python benchmarks/error_bars.py                                # three components, 8 runs of two walkers, 1.72 ns each
    python benchmarks/error_bars.py --components 1 --width 0.12    # one component, with kernels as wide as a basin

Independent double wells, one for each component of the CV: minima at -1 and 1, a barrier of about 30 kJ/mol, F(1) - F(-1) of
8.6 kJ/mol at 300 K, fluctuations of 0.12 in a basin, Langevin dynamics that loses its velocity within 0.05 ps. OPES deposits
every ps, and the rows of COLVAR, 0.2 ps apart, are analysed as `geomgnn report` does. Printed are dF of every run with the
error it says of itself, and over all runs how far off they are in units of that error: 1 is honest, more is too sure of
itself. Half a minute of a core for each run.
"""

import argparse
import math

import numba
import numpy as np

from openmm_geomgnn.analysis.pipeline import analyse_biased_run
from openmm_geomgnn.analysis.variables import BiasedRun
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.units import BOLTZMANN

TEMPERATURE = 300.0  # K
kT = BOLTZMANN * TEMPERATURE
BARRIER, TILT = 25.0, 8.7  # kJ/mol, of the double well
SPEED, FRICTION = 3.0, 20.0  # of a component: its thermal velocity in 1/ps, and 1/ps
STEP, STRIDE, PACE = 0.008, 25, 125  # ps, and steps between rows and depositions
WALKERS, SETTLING = 2, 20.0  # and ps
CORES = (-1.4, -0.6), (0.6, 1.4)


@numba.njit(fastmath=True)
def well(x):
    """Energy of one component in kJ/mol, and the force on it."""
    u = min(max((x + 1) / 2, 0.0), 1.0)
    energy = BARRIER * (x * x - 1) ** 2 + TILT * u * u * (3 - 2 * u)
    return energy, -4 * BARRIER * x * (x * x - 1) - 3 * TILT * u * (1 - u)


@numba.njit(fastmath=True)
def evaluate(x, kernels, constants, gradient):
    """The bias at x (d,), as `OPES.bias`, and its gradient."""
    centres, inverse, heights = kernels
    cutoff2, epsilon, scale = constants
    gradient[:] = 0.0
    total, floor = epsilon, math.exp(-0.5 * cutoff2)
    for k in range(len(heights)):
        r2 = 0.0
        for j in range(len(x)):
            r2 += ((x[j] - centres[k, j]) * inverse[k, j]) ** 2
        if r2 < cutoff2:
            value = heights[k] * math.exp(-0.5 * r2)
            total += value - heights[k] * floor
            for j in range(len(x)):
                gradient[j] -= value * (x[j] - centres[k, j]) * inverse[k, j] ** 2
    gradient *= scale / total
    return scale * math.log(total)


@numba.njit(fastmath=True)
def advance(x, v, kernels, constants, rows, bias, temperature):
    """One walker for PACE steps of Langevin dynamics (BAOAB); x and v (d,) are changed, rows and the others filled."""
    gradient = np.zeros(len(x))
    keep = math.exp(-FRICTION * STEP)
    kick, mass = math.sqrt(1 - keep * keep) * SPEED, kT / SPEED**2
    evaluate(x, kernels, constants, gradient)
    for step in range(1, PACE + 1):
        for j in range(len(x)):
            v[j] += 0.5 * STEP * (well(x[j])[1] - gradient[j]) / mass
            x[j] += 0.5 * STEP * v[j]
            v[j] = keep * v[j] + kick * np.random.normal()
            x[j] += 0.5 * STEP * v[j]
        V = evaluate(x, kernels, constants, gradient)
        for j in range(len(x)):
            v[j] += 0.5 * STEP * (well(x[j])[1] - gradient[j]) / mass
        if step % STRIDE == 0:
            row = step // STRIDE - 1
            rows[row], bias[row] = x, V
            temperature[row] = (v * v).mean() / SPEED**2 * TEMPERATURE


@numba.njit
def seed_noise(seed):
    """Seed the noise of `advance`."""
    np.random.seed(seed)


def known_difference():
    """F(1) - F(-1) in kJ/mol, of the two sides of 0."""
    x = np.linspace(-2, 2, 4001)
    weights = np.exp([-well(one)[0] / kT for one in x])
    return -kT * math.log(weights[x > 0].sum() / weights[x <= 0].sum())


def simulate(components, width, length, seed):
    """COLVAR of a run as a dict of columns."""
    opes = OPES(barrier=40, pace=PACE, temperature=TEMPERATURE, sigma=[width] * components, sigma_min=[0.05] * components)
    state = opes.initial_state(components, WALKERS)
    constants = opes.kernel_cutoff**2, opes.epsilon, opes.p * kT
    seed_noise(seed)
    x = -np.ones((WALKERS, components))
    v = np.random.default_rng(seed).normal(size=x.shape) * SPEED
    parts = []
    for _ in range(round(length / (PACE * STEP))):
        heights = np.exp(state.log_heights - state.log_W - math.log(state.Z))
        kernels = state.centres, 1 / state.sigmas, heights
        blocks = [np.empty((WALKERS, PACE // STRIDE, *tail)) for tail in ((components,), (), ())]
        for walker in range(WALKERS):
            advance(x[walker], v[walker], kernels, constants, *(block[walker] for block in blocks))
        parts.append(blocks)
        state = opes.update(state, x)
    s, bias, temperature = (np.concatenate(part, 1).swapaxes(0, 1) for part in zip(*parts, strict=True))
    rows = len(s)
    colvar = {
        "time": np.repeat(STRIDE * STEP * np.arange(1, rows + 1), WALKERS),
        "walker": np.tile(np.arange(WALKERS), rows).astype(float),
    }
    colvar |= {f"cv.{k + 1}": s[:, :, k].ravel() for k in range(components)}
    nker = np.full(rows * WALKERS, float(len(state.centres)))
    return colvar | {"opes.bias": bias.ravel(), "opes.nker": nker, "temperature": temperature.ravel()}


def analyse(colvar, components):
    """The summaries of the report along each component."""
    for k in range(components):
        run = BiasedRun(colvar, TEMPERATURE, degrees_of_freedom=components)
        yield analyse_biased_run(run, [run.component(f"cv.{k + 1}", cores=CORES)], settling=SETTLING).summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", type=int, default=3)
    parser.add_argument("--width", type=float, default=0.27, help="of the kernels, initially (0.12 times components^(3/4))")
    parser.add_argument("--length", type=float, default=1720.0, help="ps of each walker")
    parser.add_argument("--runs", type=int, default=8)
    arguments = parser.parse_args()
    known, found = known_difference(), []
    print(f"known: {known:.2f} kJ/mol\n{'run':>4s}  dF +- error of each component; crossings used; temperature")
    for seed in range(arguments.runs):
        summaries = list(
            analyse(simulate(arguments.components, arguments.width, arguments.length, seed), arguments.components)
        )
        found.append([(one["delta_F_kJ_per_mol"], one["delta_F_error"]) for one in summaries])
        figures = ", ".join(f"{value:.2f} +- {error:.2f}" for value, error in found[-1])
        crossings = ", ".join(f"{one['crossings_used']:.0f}" for one in summaries)
        print(f"{seed:>4d}  {figures}; {crossings}; {summaries[0]['mean_temperature_K']:.1f} K", flush=True)
    value, error = np.array(found).transpose(2, 0, 1)
    off = value - known
    rms, of_error = (np.sqrt(np.square(one).mean()) for one in (off, off / error))
    print(f"mean {value.mean():.2f}; off by {rms:.2f} (root mean square) at a mean error of {error.mean():.2f}")
    print(f"in units of its own error a run is off by {of_error:.2f}")


if __name__ == "__main__":
    main()
