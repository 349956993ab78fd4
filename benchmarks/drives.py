"""Does a learned CV drive a molecule? Beside OPES on the coordinates that are known to be slow, and a long reference.

    python benchmarks/drives.py                                      # alanine dipeptide, both states given, one seed
    python benchmarks/drives.py --only pro-one --seeds 1 2 3
    python benchmarks/drives.py --only ala2-both --set run.length=10ns

`ours` is `geomgnn run` of a protocol; `yardstick` openmm-opes on phi and psi, on omega, or on phi of all residues, as long
as all walkers of ours together, with the same barrier, pace, time step and masses. Crossings are counted between the same
cores of the same torsions in frames 1 ps apart. Free energies are compared with those of benchmarks/references.py where they
are in the folder --references, by default those kept with the documentation. Stopped or killed, the same command goes on.
What is printed is also in JSON files.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from known.molecules import find_molecule
from known.results import evaluate
from known.runs import read_run, run_protocol
from known.sampling import sample

from openmm_geomgnn.files import atomic_write

REPOSITORY = Path(__file__).resolve().parents[1]
PROTOCOLS = REPOSITORY / "protocols"
DISCARD = 0.2  # share of the yardstick that is not averaged over, as in protocols
HIGHEST = 15.0  # kJ/mol, up to which free energies are compared


@dataclass(frozen=True)
class Case:
    """A molecule that is driven, and the protocol that does it.

    molecule: as for benchmarks/references.py. settings: of the protocol, that are changed.
    """

    molecule: str
    protocol: str
    settings: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "ala2-both": Case("ala2", "ala2-rounds.yaml", {"system.structures": "[ala2-c7eq.pdb, ala2-c7ax.pdb]"}),
    "ala2-linear": Case("ala2", "ala2-opes.yaml"),  # both states given, no rounds
    "ala2-one": Case("ala2", "ala2-rounds.yaml"),
    "pro-both": Case("pro", "proline-rounds.yaml", {"system.structures": "[pro-trans.pdb, pro-cis.pdb]"}),
    "pro-one": Case("pro", "proline-rounds.yaml"),
    # that none of our settings was chosen on
    "glypro-one": Case("glypro", "proline-rounds.yaml", {"system.structures": f"[{find_molecule('glypro').structure}]"}),
    # the next of that kind: named before it was run
    "val-one": Case("val", "ala3-rounds.yaml", {"system.structures": f"[{find_molecule('val').structure}]"}),
    "ala3-one": Case("ala3", "ala3-rounds.yaml"),
}


def ours(case, seed, folder, settings):
    """Run the protocol of a case, and evaluate its production run along the known torsions: (results, summary)."""
    known, protocol = find_molecule(case.molecule), PROTOCOLS / case.protocol
    settings = {**case.settings, **settings, "seed": seed}
    summary = run_protocol(protocol, folder, settings)
    return evaluate(known, read_run(known, folder, summary), summary["discarded_ps"]), summary


def yardstick(molecule, length, seed, folder):
    """OPES on the known torsions for `length` ns: results."""
    known = find_molecule(molecule)
    folder.mkdir(parents=True, exist_ok=True)
    return evaluate(known, sample(known, "opes", 1000 * length, seed, folder), DISCARD * 1000 * length)


def reference_of(molecule, folder):
    """The longest reference of a molecule in a folder, None if there is none."""
    stem = find_molecule(molecule).structure.stem
    found = [json.loads(path.read_text()) for path in folder.glob(f"{stem}.*.json")]
    return max(found, key=lambda one: one["nanoseconds"], default=None)


def deviation(one, other):
    """The root mean square deviation of two free energies along a torsion, kJ/mol, where the second is below HIGHEST."""
    values, expected = (np.array(each["value"], dtype=float) for each in (one, other))
    low = (expected < HIGHEST) & np.isfinite(values)
    apart = values[low] - expected[low]
    return float(np.sqrt(np.mean((apart - apart.mean()) ** 2)))


def compare(name, seed, arguments):
    """One case with one seed: print the table, and return all that was found."""
    case, folder = CASES[name], arguments.output / f"{name}.{seed}"
    settings = dict(change.split("=", 1) for change in arguments.set)
    mine, summary = ours(case, seed, folder, settings)
    length = arguments.length or mine["nanoseconds"]
    ideal = yardstick(case.molecule, length, seed, arguments.output / "yardsticks")
    reference = reference_of(case.molecule, arguments.references)
    found = {"case": name, "seed": seed, "ours": mine, "yardstick": ideal, "reference": reference, "summary": summary}
    print_comparison(found)
    return found


def print_comparison(found):
    """A row for each torsion that divides states, and one for each state where there are several torsions."""
    mine, ideal, reference, summary = (found[key] for key in ("ours", "yardstick", "reference", "summary"))
    print(f"\n{found['case']}, seed {found['seed']}: {summary['verdict']}")
    print(f"{mine['nanoseconds']:.2f} ns at {mine['temperature']:.1f} K, {summary['wall_seconds']:.0f} s all in all")
    header = ("", "crossings per ns", "yardstick", "ratio", "F(+) - F(-)", "yardstick", "reference", "RMSE of F")
    print("".join(f"{title:>18s}" for title in header))
    for torsion, crossed in mine["crossings_per_ns"].items():
        best = ideal["crossings_per_ns"][torsion]
        row = [torsion, f"{crossed:.1f}", f"{best:.1f}", f"{crossed / best:.0%}" if best else ""]
        row += [_energy(one["delta_F"][torsion]) if one else "" for one in (mine, ideal, reference)]
        profiles = [one["free_energy"][torsion] for one in (mine, reference) if one]
        row.append(f"{deviation(*profiles):.2f}" if reference else "")
        print("".join(f"{entry:>18s}" for entry in row))
    if len(mine["crossings_per_ns"]) > 1:
        print("population in %, and F(state) - F(the rest)")
        for state, one in mine["states"].items():
            states = [one, ideal["states"][state], *([reference["states"][state]] if reference else [])]
            shown = [f"{100 * each['population']:.2f}  {_energy(each['free_energy'])}" for each in states]
            print("".join(f"{entry:>24s}" for entry in (state, *shown)))


def _energy(difference):
    value, error = ("?" if difference[key] is None else f"{difference[key]:.2f}" for key in ("value", "error"))
    return f"{value} +- {error}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(CASES), default=["ala2-both"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--length", type=float, help="ns of the yardstick, by default as long as ours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in geomgnn run")
    parser.add_argument("--output", type=Path, default=Path("runs/drives"), help="folder")
    parser.add_argument("--references", type=Path, default=REPOSITORY / "docs/studies/references", help="folder")
    arguments = parser.parse_args()
    for name in arguments.only:
        if not (PROTOCOLS / CASES[name].protocol).is_file():
            raise SystemExit(f"There is no {PROTOCOLS / CASES[name].protocol}, which {name} runs.")
        for seed in arguments.seeds:
            found = compare(name, seed, arguments)
            with atomic_write(arguments.output / f"{name}.{seed}.json") as temporary:
                temporary.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
