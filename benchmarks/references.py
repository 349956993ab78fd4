"""Reference simulations, biased along the torsions that are known to be slow, to compare learned CVs with.

    python benchmarks/references.py --molecule ala2 --length 100        # ns; a short look by default
    python benchmarks/references.py --molecule ala3 --length 5 --seeds 1 2 3 4    # four simulations, evaluated together
    python benchmarks/references.py --molecule FILE.pdb --torsions "phi VAL2" "psi VAL2" --barrier 40 --length 20

Force field, masses, integrator and temperature are the defaults of `geomgnn run`. Up to two torsions are biased jointly by
openmm.app.Metadynamics, more by metadynamics on each (--method concurrent); --method opes is openmm-opes. The weight of a
frame is exp((V - c(t))/kT). Stopped or killed, the same command goes on, and a greater --length prolongs what is there.
Simulations of several seeds know nothing of each other; made side by side, each by a command of its own, they are there for
the command that names all of them.

A JSON file has F along each torsion, F(+) - F(-) with error and halves, the populations of all states, and crossings per ns.
"""

import argparse
import json
from pathlib import Path

from known.biases import METHODS
from known.molecules import MOLECULES, find_molecule
from known.results import evaluate
from known.sampling import sample, together

from openmm_geomgnn.files import atomic_write

JOINTLY = 2  # torsions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecule", default="ala2", help=f"{', '.join(MOLECULES)}, or a structure file")
    parser.add_argument("--torsions", nargs="+", help='to be biased, as "phi ALA2"; for a structure file')
    parser.add_argument("--barrier", type=float, help="kJ/mol; by default the molecule's, else 40")
    parser.add_argument("--length", type=float, default=0.2, help="ns, of each simulation")
    parser.add_argument("--method", choices=tuple(METHODS), help="by default one that fits the number of torsions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of as many simulations")
    parser.add_argument("--discard", type=float, default=0.1, help="share of the length, at the start, not averaged over")
    parser.add_argument("--output", type=Path, default=Path("runs/references"), help="folder")
    arguments = parser.parse_args()
    known = find_molecule(arguments.molecule, arguments.torsions, arguments.barrier)
    method = arguments.method or ("metadynamics" if len(known.torsions) <= JOINTLY else "concurrent")
    arguments.output.mkdir(parents=True, exist_ok=True)
    length = 1000 * arguments.length
    sampled = together([sample(known, method, length, seed, arguments.output) for seed in arguments.seeds])
    results = {"method": method, "seeds": arguments.seeds, "barrier": known.barrier}
    results |= evaluate(known, sampled, arguments.discard * length)
    name = "-".join(map(str, arguments.seeds))
    path = arguments.output / f"{known.structure.stem}.{method}.{name}.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    print_results(results)
    print(path)


def print_results(results):
    """The most important numbers."""
    print(f"{results['structure']}, {results['method']}, {results['nanoseconds']:g} ns, {results['temperature']:.1f} K")
    for name, one in results["delta_F"].items():
        halves = " and ".join("?" if half is None else f"{half:.2f}" for half in one["halves"])
        value, error = ("?" if one[key] is None else f"{one[key]:.2f}" for key in ("value", "error"))
        crossed = results["crossings_per_ns"][name]
        print(f"{name}: F(+) - F(-) = {value} +- {error} kJ/mol (halves {halves}), {crossed:.1f} crossings per ns")
    if len(results["delta_F"]) > 1:
        for name, state in results["states"].items():
            print(f"{name}: {100 * state['population']:.3f} %, {state['frames']} frames")


if __name__ == "__main__":
    main()
