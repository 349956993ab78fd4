"""What is noted of the seeds and the rounds of a run: a file in its folder, tables and a picture in its report."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openmm_geomgnn.analysis.report import plain
from openmm_geomgnn.analysis.round_plots import round_history
from openmm_geomgnn.cli.names import ROUNDS, ROUNDS_FILE, SEEDS
from openmm_geomgnn.cli.run_folder import round_folders
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.sampling.seeds import read_seeds


def write_rounds(folder: Path, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Write what is noted of the rounds so far, atomically."""
    with atomic_write(folder / ROUNDS_FILE) as temporary:
        temporary.write_text(json.dumps({"rounds": plain(list(rounds))}, indent=1) + "\n", encoding="utf-8")


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """What is noted of the rounds in the folder of a run; [] where there were none."""
    path = folder / ROUNDS_FILE
    return json.loads(path.read_text(encoding="utf-8"))["rounds"] if path.is_file() else []


def seed_tables(folder: Path) -> list[tuple[str, list]]:
    """(title, rows) with the seeds in the folder of a run and of its rounds, for its report; [] where there are none."""
    found = _seed_table(folder, SEEDS, "Seeds: minima of what was explored, from which unbiased runs started")
    for one in round_folders(folder):
        inside = f"{ROUNDS}/{one.name}/{SEEDS}"
        found += _seed_table(folder, inside, f"Seeds after round {one.name}: further minima that were explored along its CV")
    return found


def _seed_table(folder: Path, inside: str, title: str) -> list[tuple[str, list]]:
    seeds = read_seeds(folder / inside)
    if not seeds:
        return []
    rows: list[list[Any]] = [["seed", "found as", "energy above the lowest (kJ/mol)", "torsions (degrees)"]]
    lowest = min(seed["energy"] for seed in seeds)
    for seed in seeds:
        torsions = ", ".join(f"{name} {angle:.0f}" for name, angle in seed["torsions (degrees)"].items())
        rows.append([f"{inside}/{seed['file']}", seed["origin"], f"{seed['energy'] - lowest:.1f}", torsions])
    return [(title, rows)]


def round_tables(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, list]]:
    """(title, rows) for a report; [] where there were no rounds."""
    if not rounds:
        return []
    head = ["round", "CV", "overlap with the one before", "crossings per ns", "states", "delta F (kJ/mol)", "mean T (K)"]
    rows: list[list[Any]] = [[*head, "verdict"]]
    for one in rounds:
        states = ", ".join(f"{state['name']} ({100 * state['population']:.2g} %)" for state in one["states"])
        rows.append(
            [
                f"{one['round']}{' (taken)' if one.get('taken') else ''}{_explored(one)}",
                "; ".join(one["candidates"]),
                _number(one.get("overlap"), 2),
                _rates(one),
                states or "as given",
                f"{_number(one.get('delta_F_kJ_per_mol'), 3)} +- {_number(one.get('delta_F_error'), 2)}",
                _number(one.get("mean_temperature_K"), 4),
                f"ended early: {one['failed']}" if "failed" in one else one.get("verdict", ""),
            ]
        )
    return [("Rounds of learning", rows)]


def round_figures(rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    """(title, caption, figure) for a report; [] for fewer than two rounds."""
    if len(rounds) < 2:
        return []
    crossings = [least_crossings_per_ns(one) for one in rounds]
    delta_f, errors = ([_float(one.get(name)) for one in rounds] for name in ("delta_F_kJ_per_mol", "delta_F_error"))
    caption = (
        "What the bias on the CV of each round did: crossings of the slow torsion that crossed least often, or of the "
        "states where none is slow. The free energies are those of short runs, and of different divisions where other "
        "states were found: see the table. That of the biased run counts."
    )
    numbers = [one["round"] for one in rounds]
    return [("Rounds of learning", caption, round_history(numbers, crossings, delta_f, errors))]


def least_crossings_per_ns(one: Mapping[str, Any]) -> float:
    """Crossings per ns of the slow torsion with the fewest in a round, changes of the states where no torsion is slow."""
    rates = one.get("slow_torsion_crossings_per_ns") or {}
    return min(rates.values()) if rates else (one.get("state_changes") or 0) / max(one.get("biased_ns") or 0.0, 1e-9)


def _explored(one: Mapping[str, Any]) -> str:
    """What was explored after a round, along its CV."""
    found = one.get("explored")
    return f"; then {found['frames']} frames explored along its CV, {found['seeds']} new seeds" if found else ""


def _rates(one: Mapping[str, Any]) -> str:
    """Crossings per ns of the slow torsions, else of the states."""
    rates = one.get("slow_torsion_crossings_per_ns")
    if not rates:
        return _number(one.get("crossings_per_ns"), 2)
    return ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _number(value: Any, digits: int) -> str:
    return "not known" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"
