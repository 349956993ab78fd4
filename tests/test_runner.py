"""Runs on alanine dipeptide: physics, determinism, and going on after a stop as if there had been none."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.heating import HeatGuard
from openmm_geomgnn.sampling.opes import OPES
from openmm_geomgnn.sampling.outputs import read_dcd
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.unbiased import run_unbiased
from openmm_geomgnn.sampling.walker import GAS_CONSTANT, Walker, WalkerSpec

ALA2 = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
PHI = (4, 6, 8, 10)
FIRST_BLOCK = 40  # outer steps between depositions


def torsion(positions):
    """The torsion of four points (4, 3) and its gradient (4, 3) (Blondel & Karplus 1996)."""
    b1, b2, b3 = np.diff(positions, axis=0)
    m, n, length = np.cross(b1, b2), np.cross(b2, b3), np.linalg.norm(b2)
    angle = np.arctan2(length * (b1 @ n), m @ n)
    first, last = -length / (m @ m) * m, length / (n @ n) * n
    p, q = (b1 @ b2) / length**2, (b3 @ b2) / length**2
    return angle, np.stack([first, -(1 + p) * first + q * last, p * first - (1 + q) * last, last])


class PhiCV:
    """Phi as a collective variable, in place of a network that takes a hundred times as long."""

    dimension = 1

    def __init__(self, topology, fault=None):
        self.fault = fault

    def addToSystem(self, system, bias=None, forceGroup=None):
        return PhiHandle(system, bias, self.fault)


class PhiHandle:
    forceGroup = 5

    def __init__(self, system, bias, fault):
        self.bias, self.fault, self.state, self.last, self.error, self.calls = bias, fault, None, None, None, 0
        self.state = bias.initial_state(dimension=1)
        force = openmm.PythonForce(self)
        force.setParticles(list(PHI))
        force.setForceGroup(self.forceGroup)
        system.addForce(force)

    def setState(self, state):
        self.state = state

    def value(self, context):
        context.getState(getEnergy=True, groups={self.forceGroup})
        return self.last

    def __call__(self, state):
        try:
            return self._evaluate(state)
        except ZeroDivisionError as error:
            self.error = error
            raise

    def _evaluate(self, state):
        self.calls += 1
        if self.calls == 30 and self.fault == "raise":
            raise ZeroDivisionError("the network divided by zero")
        if self.calls == 30 and self.fault == "die":
            os._exit(3)
        angle, gradient = torsion(state.getPositions(asNumpy=True)._value)
        V, slope = self.bias.bias(self.state, np.array([angle]))
        self.last = np.array([angle]), V
        return V, -slope[0] * gradient


@dataclass(frozen=True)
class Fault:
    """Makes a PhiCV that fails at its 30th evaluation."""

    kind: str

    def __call__(self, topology):
        return PhiCV(topology, self.kind)


@dataclass(frozen=True)
class Spring:
    """A harmonic bias, as stiff as one likes."""

    stiffness: float
    centre: float = -1.4
    pace: int = FIRST_BLOCK

    def initial_state(self, dimension=None, n_walkers=1):
        return ()

    def update(self, state, s):
        return state

    def bias(self, state, s):
        delta = s - self.centre
        return 0.5 * self.stiffness * float(delta @ delta), self.stiffness * delta

    def diagnostics(self, state):
        return {}

    def to_arrays(self, state):
        return {}

    def from_arrays(self, arrays):
        return ()


@dataclass(frozen=True)
class Motor(Spring):
    """A constant torque: no potential, so it heats for ever."""

    def bias(self, state, s):
        return 0.0, np.full(1, -self.stiffness)


def opes(**changes):
    settings = {"barrier": 30.0, "pace": FIRST_BLOCK, "sigma": 0.3, "periods": [(-np.pi, np.pi)]}
    return OPES(**settings | changes)


def biased(**changes):
    """A walker in vacuum, where a step takes 20 us."""
    settings = {
        "system": SystemSettings(forcefield=("amber14-all.xml",)),
        "make_cv": PhiCV,
        "platform": "Reference",
        "every": 3,
        "seed": 7,
        "colvar_interval": 10,
        "frame_interval": 25,
    }
    return WalkerSpec(ALA2, **settings | changes)


def run(folder, length, spec=None, bias=None, walkers=1, **options):
    spec = spec or biased()
    specs = [replace(spec, index=i) for i in range(walkers)]
    return Runner(specs, bias or opes(), folder, length, **{"checkpoint_interval": 0.5} | options).run()


def assert_same_run(a, b):
    for name in ("COLVAR", "KERNELS"):
        assert (a / name).read_bytes() == (b / name).read_bytes()
    trajectories = sorted(path.name for path in a.glob("*.dcd"))
    assert trajectories and trajectories == sorted(path.name for path in b.glob("*.dcd"))
    for name in trajectories:
        np.testing.assert_array_equal(read_dcd(a / name), read_dcd(b / name))
        assert (a / name).stat().st_size == (b / name).stat().st_size


# ---------------------------------------------------------------------------------------------------------------- physics


def test_temperature_of_an_unbiased_run(tmp_path):
    spec = WalkerSpec(ALA2, friction=10.0, platform="Reference", seed=3, colvar_interval=25, frame_interval=1000)
    # Langevin dynamics forgets its energy in 1/friction: 80 ps are 800 independent temperatures, 0.7 % of error
    (trajectory,) = run_unbiased([spec], 80.0, tmp_path)
    assert trajectory.mean_temperature == pytest.approx(300, rel=0.03)
    assert trajectory.frames.shape == (40, 22, 3) and trajectory.frames.dtype == np.float32
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
    kT = GAS_CONSTANT * 300
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
    assert np.abs(ends[3, 200.0] - ends[1, 200.0]).max() < 0.02 * moved


def test_heating_stops_a_run(tmp_path):
    spec = biased(friction=10.0)
    with pytest.raises(GeomGNNError, match=r"mean temperature is \d{3} K.*smaller timestep or `every`.*softer"):
        run(tmp_path / "warm", 40.0, spec, Motor(80.0))
    warm = read_colvar(tmp_path / "warm" / "COLVAR")
    assert 30 < warm["time"][-1] < 31 and 400 < warm["temperature"].mean() < 600
    with pytest.raises(GeomGNNError, match="mean temperature"):
        run(tmp_path / "hot", 30.0, spec, Motor(120.0))
    # what led there is kept
    hot = read_colvar(tmp_path / "hot" / "COLVAR")
    assert hot["time"][-1] < 10 and hot["temperature"].mean() > 600
    # asked again it does not heat on, unless that is wanted
    with pytest.raises(GeomGNNError, match="mean temperature"):
        run(tmp_path / "hot", 30.0, spec, Motor(120.0))
    assert read_colvar(tmp_path / "hot" / "COLVAR")["time"].shape == hot["time"].shape
    assert run(tmp_path / "hot", 12.0, spec, Motor(120.0), max_heating=5.0).began == pytest.approx(hot["time"][-1])


def test_fluctuations_do_not_stop_a_run():
    """A canonical temperature of 51 degrees of freedom, judged for 40 ns, and one that is 15 % too high."""
    temperatures = 300 * np.random.default_rng(0).chisquare(51, size=40_000) / 51
    for factor, stopped in ((1.0, False), (1.15, True)):
        guard = HeatGuard(300.0, 51, friction=1.0, row_interval=1.0, n_walkers=1)
        try:
            for time, temperature in enumerate(factor * temperatures):
                guard.add([temperature])
                guard.check(time)
        except GeomGNNError:
            assert stopped and time < 100
        else:
            assert not stopped


def test_an_explosion_names_walker_and_time(tmp_path):
    with pytest.raises(GeomGNNError, match=r"Walker 0 at \d.* ps has .* not finite.*smaller timestep"):
        run(tmp_path, 40.0, biased(every=8), Spring(4000.0))
    # nothing was gained, so better settings may begin anew here
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
    # here, because the processes of walkers import this file, and torch takes seconds
    from openmm_geomgnn.cv import CollectiveVariable
    from openmm_geomgnn.encoder import Encoder
    from openmm_geomgnn.force import GeomGNNCV
    from openmm_geomgnn.mixers import make_mixer
    from openmm_geomgnn.windows import residue_table, select_atoms

    topology = mdtraj.load_topology(ALA2)
    mixer = make_mixer("none", 3, 64)
    projection = 0.05 * np.random.default_rng(1).normal(size=(mixer.out_features, 2))
    molecule = residue_table(topology, select_atoms(topology))
    cv = CollectiveVariable(
        Encoder.load("et-64"), mixer, np.zeros(mixer.out_features), projection, np.ones(2), molecule
    )
    cv.save(tmp_path / "cv.safetensors")
    changes = {"make_cv": None, "cv_path": str(tmp_path / "cv.safetensors"), "engine": "eager"}
    bias = OPES(barrier=30.0, pace=20, sigma=(0.02, 0.02))
    for every in (1, 3):
        spec = biased(every=every, colvar_interval=5, frame_interval=10, **changes)
        result = run(tmp_path / str(every), 60 * 0.002 * every, spec, bias)
        colvar = read_colvar(result.colvar)
        live = np.column_stack([colvar["cv.1"], colvar["cv.2"]])[1::2]
        offline = GeomGNNCV(tmp_path / "cv.safetensors", topology, engine="eager").compute(read_dcd(result.trajectories[0]))
        assert np.ptp(live, axis=0).min() > 0.01
        # frames are in single precision
        np.testing.assert_allclose(live, offline, atol=2e-4)
        assert result.state.n == 4
    (tmp_path / "cv.safetensors").unlink()
    cv.lag_time = 3.0
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


# ------------------------------------------------------------------------------------------------------------- going on


def test_walkers_are_deterministic_and_continue(tmp_path):
    """Two walkers in two processes, in one go and in two sessions, the first of which ends between two depositions."""
    seen = []
    bias = opes(sigma=None, sigma_min=0.05)
    whole = run(tmp_path / "whole", 4.0, bias=bias, walkers=2, progress=seen.append)
    first = run(tmp_path / "parts", 2.9, bias=bias, walkers=2)
    second = run(tmp_path / "parts", 4.0, bias=bias, walkers=2)
    assert (first.began, second.began) == (0.0, first.time)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    for name, array in bias.to_arrays(whole.state).items():
        np.testing.assert_array_equal(array, bias.to_arrays(second.state)[name])
    colvar = read_colvar(whole.colvar)
    assert colvar["walker"].tolist() == [0, 1] * (len(colvar["time"]) // 2)
    assert np.ptp(colvar["cv.1"][colvar["walker"] == 0] - colvar["cv.1"][colvar["walker"] == 1]) > 0.1
    assert seen[-1].time == pytest.approx(whole.time) and seen[-1].diagnostics["nker"] == len(whole.state.centres)
    # a finished run is not run again
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = run(tmp_path / "parts", 4.0, bias=bias, walkers=2)
    assert again.began == again.time == second.time
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import test_runner
test_runner.run(sys.argv[1], 30.0, progress=lambda progress: print(progress.time, flush=True))
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    run(tmp_path / "whole", 30.0)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    # half way, and not at a checkpoint, which are every third block
    for line in process.stdout:
        if float(line) > 15.2:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    killed = read_colvar(tmp_path / "killed" / "COLVAR")
    assert 15 < killed["time"][-1] < 29
    seen = []
    result = run(tmp_path / "killed", 30.0, progress=seen.append)
    assert 14 < result.began < 29 and seen[0].time > result.began
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_another_run_is_not_continued(tmp_path):
    run(tmp_path, 0.5)
    softer = SystemSettings(forcefield=("amber14-all.xml",), hydrogen_mass=2.0)
    for message, changes in {
        "bias setting barrier: it was 30.0 and is now 25.0": {"bias": opes(barrier=25.0)},
        "bias setting pace": {"bias": opes(pace=20)},
        "another timestep: it was 0.002 and is now 0.001": {"spec": biased(timestep=0.001)},
        "system setting hydrogen_mass": {"spec": biased(system=softer)},
        "another collective variable: it was 'PhiCV'": {"spec": biased(make_cv=Fault("none"))},
        "number of walkers": {"walkers": 2},
        "seed": {"spec": biased(seed=8)},
    }.items():
        with pytest.raises(GeomGNNError, match=message):
            run(tmp_path, 1.0, **changes)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    with pytest.raises(GeomGNNError, match="damaged"):
        run(tmp_path, 1.0)
    (tmp_path / "checkpoint.safetensors").unlink()
    with pytest.raises(GeomGNNError, match="no checkpoint"):
        run(tmp_path, 1.0)


def test_output_that_does_not_fit_the_checkpoint(tmp_path):
    run(tmp_path, 0.9)
    dcd = tmp_path / "trajectory.0.dcd"
    os.truncate(dcd, dcd.stat().st_size // 2)
    with pytest.raises(GeomGNNError, match="shorter than the 6 frames"):
        run(tmp_path, 2.0)


# ---------------------------------------------------------------------------------------------------------- what goes wrong


def test_an_exception_of_the_cv_is_the_cause(tmp_path):
    with pytest.raises(GeomGNNError, match="Walker 0 stopped after .* ps: ZeroDivisionError: the network") as caught:
        run(tmp_path, 5.0, biased(make_cv=Fault("raise")))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_walker_that_fails_in_its_process(tmp_path):
    with pytest.raises(GeomGNNError, match="Walker [01] stopped after .* ps: ZeroDivisionError") as caught:
        run(tmp_path / "a", 5.0, biased(make_cv=Fault("raise")), walkers=2)
    assert "in _evaluate" in str(caught.value.__cause__)
    with pytest.raises(GeomGNNError, match="process of walker [01] ended with code 3"):
        run(tmp_path / "b", 5.0, biased(make_cv=Fault("die")), walkers=2)


def test_walkers_that_do_not_fit(tmp_path):
    for message, specs in {
        "no walkers": [],
        r"numbered \[0, 0\]": [biased(), biased()],
        "Walker 1 has temperature = 310.0": [biased(), biased(index=1, temperature=310.0)],
        "colvar_interval is 0": [biased(colvar_interval=0)],
    }.items():
        with pytest.raises(GeomGNNError, match=message):
            Runner(specs, opes(), tmp_path, 1.0)
    with pytest.raises(GeomGNNError, match="needs a collective variable"):
        Runner([biased(make_cv=None)], opes(), tmp_path, 1.0)
    with pytest.raises(GeomGNNError, match=r"have the shape \(21, 3\) for 22 atoms"):
        run(tmp_path, 1.0, biased(positions=np.zeros((21, 3))))


def test_ctrl_c_ends_with_a_checkpoint(tmp_path):
    def interrupt(progress):
        if progress.time > 1.0:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", 3.0, progress=interrupt)
    assert 1.0 < run(tmp_path / "stopped", 3.0).began < 2.0
    run(tmp_path / "whole", 3.0)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


# ------------------------------------------------------------------------------------------------------------- unbiased


def test_a_run_without_a_bias(tmp_path):
    """One step is then a time step, whatever `every` says, and no CV is needed."""
    specs = [biased(make_cv=None)]
    first = Runner(specs, None, tmp_path / "parts", 1.1).run()
    assert first.kernels is None and first.state is None and not (tmp_path / "parts" / "KERNELS").exists()
    Runner(specs, None, tmp_path / "parts", 2.0).run()
    Runner(specs, None, tmp_path / "whole", 2.0).run()
    colvar = read_colvar(tmp_path / "parts" / "COLVAR")
    assert list(colvar) == ["time", "walker", "temperature"]
    np.testing.assert_allclose(colvar["time"], 0.02 * np.arange(1, 101))
    assert (tmp_path / "parts" / "COLVAR").read_bytes() == (tmp_path / "whole" / "COLVAR").read_bytes()


def test_unbiased_walkers_are_made_once(tmp_path):
    spec = WalkerSpec(ALA2, platform="Reference", seed=5, colvar_interval=50, frame_interval=20, equilibration=0.2)
    specs = [spec, replace(spec, index=1, temperature=400.0, structure=ALA2.replace("c7eq", "c7ax"))]
    seen = []
    made = run_unbiased(specs, 1.0, tmp_path, processes=2, progress=seen.append)
    assert [trajectory.frames.shape for trajectory in made] == [(25, 22, 3)] * 2
    phi = [mdtraj.compute_dihedrals(mdtraj.load(str(t.path), top=ALA2), [PHI]).mean() for t in made]
    assert phi[0] < 0 < phi[1]
    assert seen[-1].time == pytest.approx(2.0) == seen[-1].length
    # the same walker in this process, and with company in another: the same trajectory
    (alone,) = run_unbiased(specs[:1], 1.0, tmp_path / "alone")
    np.testing.assert_array_equal(alone.frames, made[0].frames)
    seen.clear()
    again = run_unbiased(specs, 1.0, tmp_path, progress=seen.append)
    assert not seen
    np.testing.assert_array_equal(again[1].frames, made[1].frames)
    with pytest.raises(GeomGNNError, match="another temperature: it was 400.0 and is now 450.0"):
        run_unbiased([specs[0], replace(specs[1], temperature=450.0)], 1.0, tmp_path)
    with pytest.raises(GeomGNNError, match="number of steps"):
        run_unbiased(specs, 2.0, tmp_path)
