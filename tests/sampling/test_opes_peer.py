"""OPES against openmm-opes, an implementation by others that is validated against PLUMED.

Where the two differ by definition, and what makes them comparable here:

* Our kernels end at a cutoff and are shifted to be zero there, as in PLUMED; theirs are whole Gaussians. Ours get a cutoff
  so far out that nothing is left of it.
* Two kernels that merge keep their summed height in ours, as in PLUMED, and their summed weight (height times widths) in
  theirs. Whole runs are compared without merging, and the merging with one number for both.
* Their bias in a simulation is interpolated between the points of a grid. Kernels are weighted with that value in both, and
  energies compared at the points.
* The sums of weights begin with exp(-barrier/kT) in ours, as in PLUMED, and with nothing in theirs. It cancels in the bias,
  and changes the widths by less than 1e-7.
"""

import math

import numpy as np
import openmm
import pytest
from biases import TORSION
from molecules import ala2
from openmm import app, unit

from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.opes.kernel_sum import add_kernel
from openmm_geomgnn.sampling.systems import build_system

openmm_opes = pytest.importorskip("openmm_opes", reason="pip install openmm-opes")
# a cutoff beyond half the period makes the force jump where the bias is nil
pytestmark = [pytest.mark.filterwarnings("ignore:sigma = .* reaches beyond half the period"), pytest.mark.slow]

PACE, FAR = 20, 25.0
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
ENDS = (1, 18)  # two carbon atoms
# variables: their widths, points of the grid in each direction, and what else OPES is told
CASES = {
    "a distance": (["ends"], [0.02], 301, {}),
    "a torsion": (["phi"], [0.2], 361, {}),
    "two torsions": (["phi", "psi"], [0.2, 0.3], 61, {}),
    "explore": (["phi"], [0.1], 361, {"explore": True}),
    "explore, two torsions": (["phi", "psi"], [0.1, 0.1], 61, {"explore": True}),
    "a floor": (["ends"], [0.02], 301, {"sigma_min": [0.015]}),
    "adaptive": (["ends"], None, 301, {}),
    "adaptive, two torsions": (["phi", "psi"], None, 121, {}),
    "adaptive explore": (["phi"], None, 361, {"explore": True}),
}


def variable(name, sigma, points):
    if name == "ends":
        force = openmm.CustomBondForce("r")
        force.addBond(*ENDS, [])
        return app.BiasVariable(force, 0.2, 1.2, sigma, False, points)
    force = openmm.CustomTorsionForce("theta")
    force.addTorsion(*{"phi": PHI, "psi": PSI}[name], [])
    return app.BiasVariable(force, *TORSION, sigma, True, points)


class Peer(openmm_opes.OPES):
    """Notes what it deposits: CV values, and the bias that weights them."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.deposited = []

    def addKernel(self, values, biasEnergy, variance=None):
        self.deposited.append((np.array(values), biasEnergy.value_in_unit(unit.kilojoules_per_mole)))
        return super().addKernel(values, biasEnergy, variance)


def make_simulation(variables, widths, settings):
    molecule = ala2()
    topology = molecule.topology.to_openmm()
    system = build_system(topology)
    names = {"explore": "exploreMode", "sigma_min": "minBandwidth"}
    options = {names[name]: value for name, value in settings.items()}
    # an adaptive width looks at every step
    adaptive = None if widths else 1
    peer = Peer(system, variables, 300, 40, PACE, adaptive, compressionThreshold=0, **options)
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.002)
    integrator.setRandomNumberSeed(3)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(molecule.xyz[0])
    simulation.context.setVelocitiesToTemperature(300, 3)
    return peer, simulation


def peer_kernels(peer, explore):
    """Centres, widths, and logarithms of heights, the first of which is 0."""
    prefix = "total" if explore else "totalRW"
    centres, widths, weights = (peer.getState()[f"{prefix}_{name}"] for name in ("positions", "bandwidths", "logWeights"))
    heights = weights - np.log(widths).sum(axis=1)
    return centres, widths, heights - heights[0]


@pytest.mark.parametrize("case", CASES)
def test_kernels_and_bias_are_those_of_the_peer(case):
    """The peer biases a molecule; ours is told where it deposits."""
    names, widths, points, settings = CASES[case]
    variables = [variable(name, sigma, points) for name, sigma in zip(names, widths or [0.1] * len(names), strict=True)]
    peer, simulation = make_simulation(variables, widths, settings)
    periods = [TORSION if each.periodic else None for each in variables]
    opes = OPES(40, PACE, 300, widths, kernel_cutoff=FAR, compression_threshold=0, periods=periods, **settings)
    state = opes.initial_state(len(names))
    for _ in range(50 * PACE):
        peer.step(simulation, 1)
        state = opes.observe(state, peer.getCollectiveVariables(simulation))
        while opes.diagnostics(state)["nker"] < len(peer.deposited):
            s, V = peer.deposited[len(state.centres)]
            mine = opes.bias(state, s)[0]
            # what their grid adds to the bias
            assert V == pytest.approx(mine, abs=0.2 if len(names) > 1 else 0.01)
            state = opes.update(state, s, other_bias=V - mine)

    assert len(state.centres) == (50 if widths else 41)
    centres, sigmas, heights = peer_kernels(peer, opes.explore)
    apart = state.centres - centres
    apart -= np.array([2 * math.pi if period else 0.0 for period in periods]) * np.rint(apart / (2 * math.pi))
    np.testing.assert_allclose(apart, 0, atol=1e-12)
    np.testing.assert_allclose(state.sigmas, sigmas, rtol=1e-6)
    np.testing.assert_allclose(state.log_heights - state.log_heights[0], heights, atol=1e-6)

    axes = [np.linspace(each.minValue, each.maxValue, each.gridWidth) for each in variables]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
    theirs = peer.getBias().value_in_unit(unit.kilojoules_per_mole).T.ravel()
    assert np.ptp(theirs) > 20
    np.testing.assert_allclose(opes.bias(state, grid)[0], theirs, atol=1e-6)
    rct = peer.getCt("running").value_in_unit(unit.kilojoules_per_mole)
    assert opes.diagnostics(state)["rct"] == pytest.approx(rct, abs=1e-6)


@pytest.mark.parametrize("periods", [[None], [TORSION], [TORSION, TORSION]])
def test_the_same_kernels_merge(periods):
    """One number is their weight and our height: the same neighbours merge, to the same mean and variance."""
    from openmm_opes.kde import CVSpace, OnlineKDE

    d, rng = len(periods), np.random.default_rng(len(periods))
    low, high = TORSION
    space = CVSpace([CVSpace.CV(low, high, 31, period is not None) for period in periods])
    kde, kernels = OnlineKDE(space), (np.zeros((0, d)), np.zeros((0, d)), np.zeros(0))
    box = (np.full(d, low), np.full(d, high - low)) if periods[0] else (None, None)
    for _ in range(300):
        centre, sigma, log_weight = rng.uniform(low, high, d), rng.uniform(0.1, 0.3, d), rng.normal(0, 3)
        kde.update(centre, log_weight, sigma**2, factor=1.0)
        kernels = add_kernel(*kernels, (centre, sigma, log_weight), 1.0, *box)
    theirs = [kde.getState()[name] for name in ("positions", "bandwidths", "logWeights")]
    assert len(theirs[0]) == len(kernels[0]) < 250
    # a merged kernel is the last of theirs, and takes the place of its neighbour in ours
    mine, other = (np.column_stack(each)[np.argsort(each[0][:, 0])] for each in (kernels, theirs))
    np.testing.assert_allclose(mine, other, atol=1e-9)
