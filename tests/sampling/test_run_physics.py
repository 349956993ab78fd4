"""Runs of alanine dipeptide: temperature and heat, and that the bias in the files is the bias that acted."""

import mdtraj
import numpy as np
import pytest
from phi_runs import ALA2, FIRST_BLOCK, PHI, Motor, Spring, biased, opes, run
from scipy.signal import lfilter

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force.geomgnncv import GeomGNNCV
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.heating import HeatGuard
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.outputs import read_dcd
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker import Walker
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from openmm_geomgnn.units import BOLTZMANN

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------------------------------------------------- physics


def test_temperature_of_an_unbiased_run(tmp_path):
    spec = WalkerSpec(ALA2, friction=10.0, platform="Reference", seed=3, colvar_interval=25, frame_interval=1000)
    # Langevin dynamics forgets its energy in 1/friction: 80 ps are 800 independent temperatures, 0.7 % of error
    (trajectory,) = run_unbiased([spec], 80.0, tmp_path)
    assert trajectory.mean_temperature == pytest.approx(300, rel=0.03)
    assert trajectory.frames.xyz.shape == (40, 22, 3) and trajectory.frames.xyz.dtype == np.float32
    np.testing.assert_allclose(trajectory.times, 2.0 * np.arange(1, 41))


def test_equipartition():
    settings = SystemSettings(constraints=None)
    spec = WalkerSpec(
        ALA2, settings, friction=20.0, timestep=0.001, platform="Reference", equilibration=1.0, colvar_interval=0
    )
    walker = Walker(spec)
    walker.start()
    energies = []
    for _ in range(600):
        walker.advance(None, 40)
        velocities = walker._context.getState(getVelocities=True).getVelocities(asNumpy=True)._value
        energies.append(0.5 * walker._masses * (velocities**2).sum(axis=1))
    energies = np.array(energies)
    hydrogens = walker._masses < 4
    kT = BOLTZMANN * 300
    # light and heavy atoms alike have 3/2 kT, less their share of the centre of mass, whose motion is removed
    expected = 1.5 * kT * (1 - walker._masses / walker._masses.sum())
    for group in (hydrogens, ~hydrogens):
        assert energies[:, group].mean() == pytest.approx(expected[group].mean(), rel=0.03)
    total = energies.sum(axis=1)
    assert total.mean() == pytest.approx(63 / 2 * kT, rel=0.03)
    # and fluctuates as a canonical kinetic energy does: the count of degrees of freedom is right
    assert total.std() / total.mean() == pytest.approx(np.sqrt(2 / 63), rel=0.1)


def test_the_bias_acts_alike_with_multiple_time_steps():
    """Without friction, a bias evaluated every third step drives the molecule as one evaluated at every step."""
    ends = {}
    for every, stiffness in ((1, 0.0), (1, 200.0), (3, 200.0)):
        bias = Spring(stiffness, centre=-0.4)
        walker = Walker(biased(bias=bias, every=every, friction=0.0, timestep=0.001, temperature=1.0, seed=2))
        walker.start()
        walker.advance((), 60 // every)
        ends[every, stiffness] = walker._frame()[0]
    moved = np.abs(ends[1, 200.0] - ends[1, 0.0]).max()
    assert moved > 0.02
    # velocities are those between kicks: one of 3 fs begins 1 fs earlier than one of 1 fs, which is 3 % of 60 fs
    assert np.abs(ends[3, 200.0] - ends[1, 200.0]).max() < 0.04 * moved


def test_heating_stops_a_run(tmp_path):
    # friction 40/ps: rows 0.06 ps apart are independent, and 20 ps tell 326 K from 300 K
    for name, torque, spec, low, high in (
        ("tepid", 100.0, biased(friction=40.0), 320, 345),
        ("warm", 80.0, biased(friction=10.0), 400, 600),
        ("hot", 120.0, biased(friction=10.0), 600, 2000),
    ):
        with pytest.raises(GeomGNNError, match=r"mean temperature is \d+ K.*smaller timestep or `every`.*softer"):
            run(tmp_path / name, 60.0, spec, Motor(torque))
        # what led there is kept
        colvar = read_colvar(tmp_path / name / "COLVAR")
        assert low < colvar["temperature"][len(colvar["time"]) // 2 :].mean() < high
        assert colvar["time"][-1] < {"tepid": 50, "warm": 31, "hot": 10}[name]
        # asked again, once and twice, it does not heat on
        for _ in range(2):
            with pytest.raises(GeomGNNError, match="mean temperature"):
                run(tmp_path / name, 60.0, spec, Motor(torque))
        assert read_colvar(tmp_path / name / "COLVAR")["time"].shape == colvar["time"].shape
    # unless that is wanted
    assert run(tmp_path / "hot", 12.0, spec, Motor(120.0), max_heating=5.0).began == pytest.approx(colvar["time"][-1])


class TestHeatGuard:
    """Judges kinetic temperatures of exact Langevin dynamics: canonical, and forgotten in 1/friction."""

    friction, interval, degrees = 1.0, 0.5, 51

    def temperatures(self, length, n_walkers, seed=0):
        """(times, n_walkers), in units of the thermostat's."""
        rng, keep = np.random.default_rng(seed), np.exp(-self.friction * self.interval)
        noise = rng.normal(size=(round(length / self.interval), n_walkers, self.degrees)) * np.sqrt(1 - keep**2)
        noise[0] /= np.sqrt(1 - keep**2)
        return (lfilter([1.0], [1.0, -keep], noise, axis=0) ** 2).mean(axis=-1)

    def stopped(self, temperatures, **options):
        """The time in ps at which the guard stops a run, None if it does not, and the guard."""
        guard = HeatGuard(300.0, self.degrees, self.friction, self.interval, temperatures.shape[1], **options)
        for k, rows in enumerate(300 * temperatures, start=1):
            guard.add(rows)
            try:
                guard.check(k * self.interval)
            except GeomGNNError:
                return k * self.interval, guard
        return None, guard

    @pytest.mark.parametrize("n_walkers", [1, 2])
    def test_chance_does_not_stop_a_run(self, n_walkers):
        temperatures = self.temperatures(10_000, n_walkers)
        assert temperatures.var() == pytest.approx(2 / self.degrees, rel=0.05)
        time, guard = self.stopped(temperatures)
        assert time is None and guard.overall_mean == pytest.approx(300 * temperatures.mean(), rel=1e-12)
        # which a checkpoint keeps, though not every row
        arrays = guard.to_arrays()
        again = HeatGuard(300.0, self.degrees, self.friction, self.interval, n_walkers, state=arrays)
        assert len(arrays["rows"]) < temperatures.size and again.overall_mean == guard.overall_mean
        # nor does what is tolerated
        assert self.stopped(1.02 * temperatures)[0] is None

    @pytest.mark.parametrize("n_walkers", [1, 2])
    @pytest.mark.parametrize("window", [20, 160, 1280])
    def test_it_sees_what_it_says(self, window, n_walkers):
        guard = HeatGuard(300.0, self.degrees, self.friction, self.interval, n_walkers)
        excess, found = guard.visible_excess(window), []
        for seed in range(6):
            time, _ = self.stopped((1 + excess) * self.temperatures(window + 30, n_walkers, seed))
            found.append(time)
        assert None not in found and max(found) <= window + 11
        # and the excess is not far above what it does not see
        assert self.stopped((1 + 0.4 * excess) * self.temperatures(window + 30, n_walkers))[0] is None

    def test_alanine_dipeptide_at_329_kelvin(self):
        """The example of the README: two walkers, 22 atoms with constrained hydrogens, 1/ps."""
        guard = HeatGuard(300.0, 51, 1.0, 0.2, 2)
        said = [round(100 * guard.visible_excess(window)) for window in (20, 160, 1280)]
        assert said == [32, 12, 5]
        times = [self.stopped(329 / 300 * self.temperatures(400, 2, seed))[0] for seed in range(5)]
        assert None not in times and max(times) < 330

    def test_a_bias_may_begin_with_heat(self):
        """450 K for ten ps and a tail of 40 ps, as the first kernel's barrier goes to the thermostat."""
        temperatures = self.temperatures(300, 2)
        times = self.interval * np.arange(len(temperatures))
        burst = 1 + 0.5 * (times < 10) + 0.5 * np.exp(-np.maximum(times - 10, 0) / 5) * (times >= 10)
        assert self.stopped(burst[:, None] * temperatures)[0] is None
        assert self.stopped(2.5 * temperatures)[0] == 5.0

    def test_it_goes_on_where_it_was(self):
        """Stopped and asked again it stops at once; in two parts it stops where it does in one."""
        temperatures = 1.2 * self.temperatures(300, 2)
        time, guard = self.stopped(temperatures)
        again = HeatGuard(300.0, self.degrees, self.friction, self.interval, 2, state=guard.to_arrays())
        with pytest.raises(GeomGNNError, match=rf"stopped at {time:g} ps: over the last .* 3\d\d K is the most that chance"):
            again.check(time)
        half = round(0.6 * time / self.interval)
        _, first = self.stopped(temperatures[:half])
        second, _ = self.stopped(temperatures[half:], state=first.to_arrays())
        assert second + half * self.interval == time
        assert self.stopped(temperatures, limit=1.25)[0] is None


def test_an_explosion_names_walker_and_time(tmp_path):
    with pytest.raises(GeomGNNError, match=r"Walker 0 at \d.* ps has .* not finite.*smaller timestep"):
        run(tmp_path, 40.0, biased(every=8), Spring(4000.0))
    # nothing was gained, so better settings may begin again here
    assert run(tmp_path, 1.0, biased(), Spring(100.0)).began == 0


# ------------------------------------------------------------------------------------------------------------ what it says


def test_the_bias_in_colvar_is_the_bias_that_acted(tmp_path):
    """Replays a run of OPES from the CV in COLVAR: same kernels, same bias, same frames."""
    bias = opes()
    run(tmp_path, 2.4, biased(seed=11), bias)
    colvar, kernels = read_colvar(tmp_path / "COLVAR"), read_colvar(tmp_path / "KERNELS")
    block, state, deposited = FIRST_BLOCK // 10, bias.initial_state(dimension=1), 0
    assert len(colvar["time"]) == 10 * block
    for start in range(0, 10 * block, block):
        for i in range(start, start + block):
            V, _ = bias.bias(state, [colvar["cv.1"][i]])
            assert colvar["opes.bias"][i] == pytest.approx(V, abs=1e-6)
            assert colvar["opes.nker"][i] == len(state.centres)
        state = bias.update(state, [colvar["cv.1"][i]])
        assert kernels["cv.1"][deposited] == colvar["cv.1"][i] and kernels["time"][deposited] == colvar["time"][i]
        deposited += 1
    assert len(kernels["time"]) == deposited == 10
    assert kernels["height"][0] == pytest.approx(np.exp(-bias.barrier / bias.kT) * 0.3 / kernels["sigma_cv.1"][0])
    # a row and a frame every 50 steps are of the same conformation
    trajectory = mdtraj.load(str(tmp_path / "trajectory.0.dcd"), top=ALA2)
    phi = mdtraj.compute_dihedrals(trajectory, [PHI])[1::2, 0]
    np.testing.assert_allclose(phi, colvar["cv.1"][4::5], atol=2e-5)


def test_a_learned_cv_at_work(tmp_path):
    """The network's CV as it was while it drove the molecule is that of the frames, and its bias pushes."""
    topology = mdtraj.load_topology(ALA2)
    mixer = make_mixer("none", 3, 64)
    projection = 0.05 * np.random.default_rng(1).normal(size=(mixer.out_features, 2))
    molecule = residue_table(topology, select_atoms(topology))
    cv = CollectiveVariable(Encoder.load("et-64"), mixer, np.zeros(mixer.out_features), projection, np.ones(2), molecule)
    cv.save(tmp_path / "cv.safetensors")
    changes = {"make_cv": None, "cv_path": str(tmp_path / "cv.safetensors"), "engine": "eager"}
    bias = OPES(barrier=30.0, pace=20, sigma=(0.02, 0.02))
    for every in (1, 3):
        spec = biased(every=every, colvar_interval=5, frame_interval=10, **changes)
        result = run(tmp_path / str(every), 60 * 0.002 * every, spec, bias)
        colvar = read_colvar(result.colvar)
        live = np.column_stack([colvar["cv.1"], colvar["cv.2"]])[1::2]
        frames = read_dcd(result.trajectories[0]).trajectory(topology)
        offline = GeomGNNCV(tmp_path / "cv.safetensors", topology, engine="eager").compute(frames)
        assert np.ptp(live, axis=0).min() > 0.01
        # frames are in single precision
        np.testing.assert_allclose(live, offline, atol=2e-4)
        assert result.state.n == 4
    (tmp_path / "cv.safetensors").unlink()
    cv.lagtime = 3.0
    cv.save(tmp_path / "cv.safetensors")
    with pytest.raises(GeomGNNError, match="another collective variable"):
        run(tmp_path / "3", 1.0, spec, bias)


def test_adaptive_widths_are_measured_at_every_step(tmp_path):
    """OPES without a sigma: nothing acts for ten paces, then kernels of the width seen."""
    bias = opes(sigma=None)
    for every in (1, 3):
        result = run(tmp_path / str(every), 13 * FIRST_BLOCK * 0.002 * every, biased(every=every, colvar_interval=1), bias)
        colvar, kernels = read_colvar(result.colvar), read_colvar(result.kernels)
        measured = colvar["cv.1"][: 10 * FIRST_BLOCK]
        assert (colvar["opes.bias"][: 10 * FIRST_BLOCK] == -30).all()
        assert result.state.a.tolist() == [13 * FIRST_BLOCK]
        assert len(kernels["time"]) == 4
        # the running mean lags behind, so this is no exact standard deviation
        assert result.state.sigma0[0, 0] == pytest.approx(measured.std(), rel=0.1)
