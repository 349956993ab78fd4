"""Read trajectory files, and print what became of each: a line of JSON, [name, outcome].

Run by test_damage.py as a process of its own: python read_trajectories.py TOPOLOGY FILE...
"""

import faulthandler
import json
import resource
import sys
import warnings
from pathlib import Path

import mdtraj
import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile
from openmm_geomgnn.representation.trajectory_times import frame_interval

SECONDS, BYTES = 5, 1 << 30  # for a file, beyond what is needed for the imports


def outcome(path, topology):
    try:
        for stride in (1, 2):
            with TrajectoryFile(path, topology, allow_truncated=True) as file:
                for piece in file.blocks(0, len(file), stride):
                    if not np.isfinite(piece.xyz).all():
                        return "not finite"
                times = file.times()
                if times is not None:
                    frame_interval(path.name, times)
        return "read"
    except GeomGNNError as error:
        if isinstance(error.__cause__, MemoryError) or not str(error) or "\n" in str(error):
            return f"{error.__cause__!r}: {error}"
        return "refused"
    except Exception as error:
        return repr(error)


def main():
    topology = mdtraj.load_topology(sys.argv[1])
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    warnings.simplefilter("ignore")
    for path in map(Path, sys.argv[2:]):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps([path.name, outcome(path, topology)]), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    main()
