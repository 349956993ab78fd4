"""Is a bias that acts at every k-th time step only (multiple time steps) as good as one that acts at every step?

    python benchmarks/multiple_time_steps.py                    # makes what is missing, then the figures and the tables
    python benchmarks/multiple_time_steps.py --chunks 4         # shorter runs; a larger number later prolongs them
    python benchmarks/multiple_time_steps.py --only drift

Three systems, each with a static bias, at every = 1, 2, 4 and 8 steps of 2 fs. Of a double well whose free energy is known,
and of alanine dipeptide biased along phi: free energies, and the temperature of the velocities at a kick and between kicks.
Of alanine dipeptide biased along a learned CV: the drift of the energy without a thermostat. Runs are cut into chunks, each
a file in --folder: stopped or killed, the same command goes on. docs/concepts/multiple-time-steps.md discusses it.
"""

import argparse
from pathlib import Path

import torch
from time_steps.results import draw_free_energies, draw_temperature_and_drift, print_tables
from time_steps.runs import make_drifts, sample_chunk
from time_steps.systems import EVERY, SYSTEMS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/multiple-time-steps"))
    parser.add_argument("--chunks", type=int, default=2, help="of each run; chunks that are there are not made again")
    parser.add_argument("--seeds", type=int, default=1, help="runs without a thermostat")
    parser.add_argument("--only", choices=(*SYSTEMS, "drift", "figures"), help="one of the parts")
    parser.add_argument("--figures", type=Path, default=Path("docs/concepts"), help="folder to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in SYSTEMS if arguments.only is None else {arguments.only} & SYSTEMS.keys():
        case = SYSTEMS[name](folder)
        for chunk in range(arguments.chunks):
            for every in EVERY:
                sample_chunk(name, case, every, chunk, folder)
    if arguments.only in (None, "drift"):
        make_drifts(folder, arguments.seeds)
    print_tables(folder, arguments.seeds)
    draw_free_energies(folder, arguments.figures / "multiple-time-steps-free-energy.png")
    draw_temperature_and_drift(folder, arguments.figures / "multiple-time-steps-energy.png", arguments.seeds)


if __name__ == "__main__":
    main()
