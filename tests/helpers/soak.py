"""Kill `geomgnn run` at random moments, resume it, and compare what it made with the run that nobody stopped, byte by byte.

    make soak                                        # 100 kills, about half an hour
    python tests/helpers/soak.py --kills 20 --seed 7

The protocol is small but whole: two unbiased runs, a linear CV, two walkers under one bias, a comparison, a report; on the
Reference platform. A run is killed and resumed until it ends, and then the next one begins, until there were enough kills.
Every other kill takes the process alone, so that its walkers have to notice; the rest take the whole group.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROTOCOL = """
system:
  structures: [ala2-c7eq.pdb, ala2-c7ax.pdb]
  forcefield: [amber14-all.xml]
  platform: Reference
unbiased: {length: 60 ps, frame_interval: 0.2 ps, equilibration: 1 ps, comparison_length: 120 ps}
cv: {lag: 2 ps, pca: 20}
bias: {pace: 0.6 ps}
run: {length: 24 ps, walkers: 2, every: 3, colvar_interval: 0.12 ps, frame_interval: 0.24 ps, checkpoint_interval: 3 ps}
analysis:
  torsions: {phi: auto, psi: auto}
  cores: {along: phi, a: [-2.8, -0.5], b: [0.3, 2.0]}
"""
COMMAND = [sys.executable, "-c", "from openmm_geomgnn.cli.main import main; main()", "run"]
STAGES = ("start", "unbiased runs", "fit", "biased run", "comparison", "report")
# of a DCD file: when it was begun
_DATE = slice(180, 260)
# says when it was written, and how long all sessions took
_TIMED = ("topology.pdb", "wall_time.json", "report.html")


def whole_run(protocol, folder):
    """A run that nobody stops; returns the seconds that it took."""
    began = time.monotonic()
    done = _start(protocol, folder)
    _check_end(done, done.communicate()[0])
    return time.monotonic() - began


def killed_run(protocol, folder, rng, seconds, kills, note=lambda *words: None):
    """A run that is killed up to `kills` times, and resumed until it ends.

    Half of the kills come up to `seconds` after the (re)start, the others up to a tenth of that after the next stage begins,
    so that the short stages get their share. note: called with the stage, the seconds since the start, and whether the whole
    group was killed. Returns the number of kills.
    """
    done, groups = 0, []
    while True:
        process, began = _start(protocol, folder), time.monotonic()
        groups.append(process.pid)
        if done == kills or not _moment_came(process, folder, rng, seconds):
            _check_end(process, process.communicate()[0])
            _check_gone(groups)
            return done
        group = rng.random() < 0.5
        note(stage(folder), time.monotonic() - began, group)
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        done += 1


def _moment_came(process, folder, rng, seconds):
    """Wait for a random moment; whether it came before the process ended."""
    if rng.random() < 0.5:
        moment = time.monotonic() + rng.uniform(0, seconds)
    else:
        first = stage(folder)
        while stage(folder) == first and process.poll() is None:
            time.sleep(0.02)
        moment = time.monotonic() + rng.uniform(0, 0.1 * seconds)
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.02)
    return process.poll() is None


def stage(folder):
    """Which part of a run the files in its folder show it in: one of STAGES."""
    folder = Path(folder)
    if not (folder / "topology.pdb").exists():
        return STAGES[0]
    if len(list(folder.glob("unbiased/trajectory.*.dcd"))) < 2:
        return STAGES[1]
    if not (folder / "cv.safetensors").exists():
        return STAGES[2]
    if not (folder / "comparison").is_dir():
        return STAGES[3]
    return STAGES[4] if len(list(folder.glob("comparison/trajectory.*.dcd"))) < 2 else STAGES[5]


def differences(a, b):
    """What of two finished runs is not the same, as a list of words: names of files, and their content."""
    a, b = Path(a), Path(b)
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in (a, b)]
    found = [f"{name} is in one folder only" for name in sorted(names[0] ^ names[1])]
    return found + [name for name in sorted(names[0] & names[1]) if content(a / name) != content(b / name)]


def content(path):
    """What of a file two runs of one protocol have in common: all bytes but the date in a DCD file, and none where the time
    it took or the path of its folder is in them."""
    if path.name in _TIMED or path.name in ("protocol.yaml", "checkpoint.safetensors"):
        return None
    if path.name == "summary.json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "wall_seconds"}
    whole = bytearray(path.read_bytes())
    if path.suffix == ".dcd":
        whole[_DATE] = bytes(len(whole[_DATE]))
    return bytes(whole)


def _start(protocol, folder):
    # a group of its own, which can be killed as a whole
    return subprocess.Popen(
        [*COMMAND, str(protocol), "--set", f"output={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _check_end(process, output):
    if process.returncode not in (0, 3):  # 3: finished, but too short to have converged
        raise AssertionError(f"The run ended with code {process.returncode}:\n{output}")


def _check_gone(groups, seconds=60):
    """No walker may outlive the process that started it for longer than a block of steps takes."""
    deadline = time.monotonic() + seconds
    while groups:
        try:
            os.killpg(groups[-1], 0)
        except ProcessLookupError:
            groups.pop()
            continue
        if time.monotonic() > deadline:
            raise AssertionError(f"Walkers of the process group {groups[-1]} are still there {seconds} s after the run.")
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rng, stages, kinds, began = random.Random(options.seed), Counter(), Counter(), time.monotonic()
    moments, kills, runs = [], 0, 0

    def note(where, moment, group):
        stages[where] += 1
        kinds["group" if group else "process"] += 1
        moments.append(moment)
        what = "group" if group else "process"
        print(f"  kill {sum(stages.values())}: {moment:.1f} s after a start, {where}, the {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="soak-") as root:
        root = Path(root)
        protocol = root / "soak.yaml"
        protocol.write_text(PROTOCOL)
        whole_run(protocol, root / "warm")  # compiles kernels
        seconds = whole_run(protocol, root / "whole")
        assert not differences(root / "warm", root / "whole"), "two runs that nobody stopped differ"
        print(f"uninterrupted: {seconds:.1f} s", flush=True)
        while kills < options.kills:
            runs += 1
            kills += killed_run(protocol, root / f"run-{runs}", rng, seconds, options.kills - kills, note)
            found = differences(root / "whole", root / f"run-{runs}")
            verdict = f"DIFFERENT: {'; '.join(found)}" if found else "the same"
            print(f"run {runs}: {kills} kills so far, {verdict}", flush=True)
            if found:
                sys.exit(1)
    where = ", ".join(f"{name} {stages[name]}" for name in STAGES)
    how = ", ".join(f"{kind} {number}" for kind, number in kinds.items())
    print(
        f"{kills} kills in {runs} runs, {min(moments):.1f} to {max(moments):.1f} s after a start ({where}; {how}): all "
        f"resumed, all files the same. {(time.monotonic() - began) / 60:.0f} minutes."
    )


if __name__ == "__main__":
    main()
