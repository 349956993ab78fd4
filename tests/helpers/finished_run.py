"""A small run, done by the command once for all test files and all processes of the tests; tests work on copies of it."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from protocol_texts import TINY

ROWS, FRAMES = 2 * 100, 50  # of COLVAR, of each trajectory
# the installed command, or, where the package is only on the path, the function it calls
SCRIPT = Path(sys.executable).with_name("geomgnn")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "from openmm_geomgnn.cli.main import main; main()"]


def finished_run(folder):
    """What the command said, its protocol and its output folder; the first process that asks does the run in `folder`."""
    folder.mkdir(exist_ok=True)
    protocol, said = folder / "tiny.yaml", folder / "said.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            protocol.write_text(TINY)
            command = [*COMMAND, "run", protocol.name]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
            said.write_text(json.dumps({"returncode": done.returncode, "stdout": done.stdout, "stderr": done.stderr}))
    return SimpleNamespace(**json.loads(said.read_text())), protocol, folder / "runs" / "tiny"


def contents(folder):
    """Every file in a folder and what is in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def not_biased_yet(folder):
    """Make the copy of a finished run one that has its CV and nothing after it."""
    for name in ("checkpoint.safetensors", "COLVAR", "KERNELS", "trajectory.0.dcd", "trajectory.1.dcd"):
        (folder / name).unlink()
