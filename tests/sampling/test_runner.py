"""Runs in their folder: going on after a stop as if there had been none, and what is said where that cannot be."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mdtraj
import numpy as np
import phi_runs
import pytest
from phi_runs import ALA2, PHI, Fault, assert_same_run, biased, opes, run
from power import Disk, restore
from safetensors import safe_open
from safetensors.numpy import save_file

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.sampling.colvar import read_colvar
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.unbiased import begun_length, run_unbiased
from openmm_geomgnn.sampling.walker_spec import WalkerSpec

pytestmark = pytest.mark.slow

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


def test_a_checkpoint_of_version_1_goes_on(tmp_path):
    """It has the most recent temperatures only, under another name."""
    run(tmp_path / "whole", 2.0)
    run(tmp_path / "parts", 1.0)
    path = tmp_path / "parts" / "checkpoint.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["run"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    del metadata["checksum"]
    heat = {name: arrays.pop(name) for name in list(arrays) if name.startswith("heat.")}
    save_file(arrays | {"temperatures": heat["heat.rows"]}, path, {"run": json.dumps(metadata | {"version": 1})})
    again = load_checkpoint(path)
    assert again.heat["count"] == heat["heat.count"] == 16 and (again.heat["rows"] == heat["heat.rows"]).all()
    run(tmp_path / "parts", 2.0)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    save_file(arrays, path, {"run": json.dumps(metadata | {"version": 3})})
    with pytest.raises(GeomGNNError, match="version 3 of the format.*up to 2.*update"):
        run(tmp_path / "parts", 3.0)


def test_prolonged_in_vain_it_is_what_it_was(tmp_path):
    """Killed before the first checkpoint of its prolongation, and asked for its old length again."""
    run(tmp_path / "whole", 1.0)
    run(tmp_path / "longer", 1.0)
    with pytest.raises(Stop):
        run(tmp_path / "longer", 5.0, checkpoint_interval=3.0, progress=stop_after(2.0))
    assert len(read_colvar(tmp_path / "longer" / "COLVAR")["time"]) > 30
    assert run(tmp_path / "longer", 1.0).began == pytest.approx(1.002)
    assert_same_run(tmp_path / "whole", tmp_path / "longer")


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
import phi_runs
phi_runs.run(sys.argv[1], 30.0, progress=lambda progress: print(progress.time, flush=True))
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    run(tmp_path / "whole", 30.0)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed"), str(Path(phi_runs.__file__).parent)]
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


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs to see which files are synced")
def test_a_power_failure_leaves_what_the_checkpoint_counts(tmp_path, monkeypatch):
    run(tmp_path / "whole", 1.0)
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "run", patch)
        run(tmp_path / "run", 1.0)
        disk.close()
    began = []
    for k, state in enumerate(disk.states):
        restore(state, tmp_path / str(k))
        began.append(run(tmp_path / str(k), 1.0).began)
        assert_same_run(tmp_path / "whole", tmp_path / str(k))
    # checkpoints at the start, after the third block and at the end; where a name was lost, the one before
    assert began == pytest.approx([0, 0, 0.72, 0, 1.002, 0.72])


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


@pytest.mark.parametrize(
    ("name", "message"),
    [("trajectory.0.dcd", "shorter than the 6 frames"), ("KERNELS", "KERNELS has .* complete"), ("COLVAR", "COLVAR has")],
)
def test_output_that_does_not_fit_the_checkpoint(name, message, tmp_path):
    run(tmp_path, 0.9)
    colvar = tmp_path / "COLVAR"  # with a row that was written after the checkpoint
    colvar.write_text(colvar.read_text() + colvar.read_text().splitlines(True)[-1])
    damaged = tmp_path / name
    os.truncate(damaged, damaged.stat().st_size // 2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(GeomGNNError, match=message):
        run(tmp_path, 2.0)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


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
    with pytest.raises(GeomGNNError, match=r"shape \(21, 3\) for 22 atoms"):
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
    assert [trajectory.frames.xyz.shape for trajectory in made] == [(25, 22, 3)] * 2
    phi = [mdtraj.compute_dihedrals(mdtraj.load(str(t.path), top=ALA2), [PHI]).mean() for t in made]
    assert phi[0] < 0 < phi[1]
    assert seen[-1].time == pytest.approx(2.0) == seen[-1].length
    # the same walker in this process, and with company in another: the same trajectory
    (alone,) = run_unbiased(specs[:1], 1.0, tmp_path / "alone")
    np.testing.assert_array_equal(alone.frames.xyz, made[0].frames.xyz)
    seen.clear()
    again = run_unbiased(specs, 1.0, tmp_path, progress=seen.append)
    assert not seen
    np.testing.assert_array_equal(again[1].frames.xyz, made[1].frames.xyz)
    with pytest.raises(GeomGNNError, match="another temperature: it was 400.0 and is now 450.0"):
        run_unbiased([specs[0], replace(specs[1], temperature=450.0)], 1.0, tmp_path)
    with pytest.raises(GeomGNNError, match="number of steps"):
        run_unbiased(specs, 2.0, tmp_path)


def unbiased_specs(**changes):
    settings = {"make_cv": None, "colvar_interval": 50, "frame_interval": 50, "equilibration": 0.1} | changes
    return [biased(**settings, index=k) for k in range(2)]


class Stop(BaseException):
    """Ends a run between two blocks, without a chance to save anything."""


def stop_after(time):
    def progress(seen):
        if seen.time > time:
            raise Stop

    return progress


def assert_same_trajectories(a, b):
    names = [f"trajectory.{k}.{kind}" for k in range(2) for kind in ("dcd", "json")]
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir()) == sorted(names)
    for name in names:
        old, new = ((folder / name).read_bytes() for folder in (a, b))
        # the header of a DCD file says when it was begun
        assert old[260:] == new[260:] if name.endswith("dcd") else old == new, name


def test_unbiased_walkers_go_on_where_they_were(tmp_path):
    """Stopped twice, side by side and one after the other, before it goes on; then given a damaged file."""
    specs, there, options = unbiased_specs(), tmp_path / "parts", {"checkpoint_interval": 4.0}
    run_unbiased(specs, 7.0, tmp_path / "whole")
    with pytest.raises(Stop):  # at 6 and 6 ps
        run_unbiased(specs, 7.0, there, processes=2, **options, progress=stop_after(11.0))
    assert not list(there.glob("trajectory.*")) and begun_length(there, 0) == pytest.approx(7.0)
    # nothing is complete, but what there is belongs to these settings
    with pytest.raises(GeomGNNError, match="another seed"):
        run_unbiased(unbiased_specs(seed=3), 7.0, there)
    seen = []
    with pytest.raises(Stop):  # at 7 and 6 ps
        run_unbiased(specs, 7.0, there, **options, progress=lambda p: (seen.append(p), stop_after(12.0)(p)))
    assert seen[0].started == pytest.approx(8.0)
    assert {path.suffix for path in there.glob("trajectory.0.*")} == {".dcd", ".json"}
    run_unbiased(specs, 7.0, there, progress=seen.append)
    assert (seen[-1].started, seen[-1].time, seen[-1].length) == pytest.approx((4.0, 7.0, 7.0))
    assert_same_trajectories(tmp_path / "whole", there)
    assert begun_length(there, 1) == pytest.approx(7.0) and begun_length(there, 2) is None
    with pytest.raises(Stop):
        run_unbiased(unbiased_specs(seed=3), 7.0, tmp_path / "cut", **options, progress=stop_after(4.5))
    os.truncate(tmp_path / "cut" / ".trajectory.0.partial.dcd", 5000)
    with pytest.raises(GeomGNNError, match="shorter than the 40 frames"):
        run_unbiased(unbiased_specs(seed=3), 7.0, tmp_path / "cut")
    (there / "trajectory.1.json").write_text("{")
    with pytest.raises(GeomGNNError, match=r"trajectory\.1\.json cannot be read"):
        run_unbiased(specs, 7.0, there)


def test_one_unbiased_walker_that_fails_does_not_stop_the_other(tmp_path):
    good, bad = unbiased_specs()
    with pytest.raises(GeomGNNError, match="Walker 1 .*not finite"):
        run_unbiased([good, replace(bad, timestep=0.01, equilibration=0.0)], 3.0, tmp_path, processes=2)
    assert (tmp_path / "trajectory.0.dcd").exists() and not (tmp_path / "trajectory.1.dcd").exists()
    seen = []
    run_unbiased([good, bad], 3.0, tmp_path, processes=2, progress=seen.append)
    assert seen[-1].length == pytest.approx(3.0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs to see which files are synced")
def test_a_power_failure_leaves_what_the_checkpoint_of_an_unbiased_walker_counts(tmp_path, monkeypatch):
    specs = unbiased_specs()
    run_unbiased(specs, 5.0, tmp_path / "whole")
    with monkeypatch.context() as patch:
        disk = Disk(tmp_path / "run", patch)
        run_unbiased(specs, 5.0, tmp_path / "run", checkpoint_interval=2.0)
        disk.close()
    # for each walker three checkpoints, the description and the trajectory, each time with and without the last rename
    assert len(disk.states) == 20
    for k in (2, 8, 9, 17):
        state = disk.states[k]
        restore(state, tmp_path / str(k))
        run_unbiased(specs, 5.0, tmp_path / str(k))
        assert_same_trajectories(tmp_path / "whole", tmp_path / str(k))
