"""The folder of a `geomgnn run` as a `Sampled`: its frames on the known torsions, and their weights."""

import json
import subprocess
import sys

import numpy as np
from known.molecules import find_atoms
from known.sampling import Sampled

from openmm_geomgnn.analysis.frames import frame_rows, total_bias
from openmm_geomgnn.cli.results import read_results
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.sampling.colvar import split_walkers
from openmm_geomgnn.sampling.explore.fourier import dihedrals

GEOMGNN = "from openmm_geomgnn.cli.main import main; main()"
NOT_CONVERGED = 3  # exit status of a run that is finished, and says that it did not converge


def run_protocol(protocol, folder, settings):
    """Run a protocol with settings {dotted key: value} into a folder, or go on with it, and return its summary.json."""
    settings = settings | {"output": folder.resolve()}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", GEOMGNN, "run", str(protocol), *changes]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, NOT_CONVERGED):
        raise SystemExit(f"{' '.join(command)} failed: see above. The same command goes on.")
    return json.loads((folder / "summary.json").read_text())


def read_run(known, folder, summary):
    """The `Sampled` of a finished run."""
    results = read_results(load_protocol(folder / "protocol.yaml", {"output": str(folder.resolve())}))
    walkers = split_walkers(results.colvar)
    atoms = find_atoms(results.biased[0].topology.to_openmm(), known.torsions)
    rows = [
        frame_rows(walker["time"], times, k)
        for k, (walker, times) in enumerate(zip(walkers, results.frame_times, strict=True))
    ]
    return Sampled(
        [dihedrals(walker.xyz, atoms) for walker in results.biased],
        [bias[picked] for bias, picked in zip(total_bias(walkers), rows, strict=True)],
        [walker["temperature"][picked] for walker, picked in zip(walkers, rows, strict=True)],
        float(np.diff(results.frame_times[0][:2])[0]),
        summary["wall_seconds"],
    )
