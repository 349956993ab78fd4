"""Does the memory of a biased simulation grow? Resident memory over many steps, with kernels being deposited.

    python benchmarks/memory.py                              # 100,000 steps of alanine dipeptide, encoder et-64
    python benchmarks/memory.py --steps 20000 --cv FILE      # any CV of alanine dipeptide's atoms

amber14 and OBC2 implicit solvent at 300 K on the Reference platform, one thread; OPES acts at every step and deposits every
100. The growth is that since the first fifth of the steps, during which kernels are compiled and pools fill up.
"""

import argparse
import os
import time
from importlib import resources

os.environ.setdefault("OMP_NUM_THREADS", "1")

import mdtraj
import openmm
import psutil
import torch
from md import random_cv

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.force.integrators import make_integrator
from openmm_geomgnn.sampling.opes.method import OPES
from openmm_geomgnn.sampling.systems import build_system, choose_platform, load_structure

ALA2 = resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"
PACE = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--cv", help="file of a CV; without it one of random weights on et-64")
    parser.add_argument("--engine", choices=("auto", "eager", "numba"), default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    topology, positions = load_structure(ALA2)
    force = GeomGNNCV(arguments.cv or random_cv(mdtraj.load(str(ALA2)), "all"), topology, engine=arguments.engine)
    bias = OPES(barrier=30, pace=PACE, temperature=300, sigma=0.5)
    system = build_system(topology)
    handle = force.addToSystem(system, bias)
    integrator = make_integrator(300, 5.0, 0.001)
    context = openmm.Context(system, integrator, *choose_platform("Reference"))
    context.setPositions(positions)
    context.setVelocitiesToTemperature(300, 1)

    process = psutil.Process()
    state, used, row = handle.getBiasState(), [], max(PACE, arguments.steps // 10)
    print(f"engine {force.bound.engine_name}; resident memory in MB\n{'steps':>9s}{'MB':>9s}{'kernels':>9s}{'ms/step':>9s}")
    started = time.process_time()
    for step in range(0, arguments.steps + 1, PACE):
        if step:
            integrator.step(PACE)
            state = bias.update(state, handle.last[0])
            handle.setBiasState(state)
        if step % row == 0:
            used.append(process.memory_info().rss / 1e6)
            spent = 1e3 * (time.process_time() - started) / max(step, 1)
            print(f"{step:9d}{used[-1]:9.1f}{len(state.centres):9d}{spent:9.2f}", flush=True)
    print(f"growth since the first fifth: {max(used[3:]) - used[2]:.2f} MB")


if __name__ == "__main__":
    main()
