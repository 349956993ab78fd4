"""What a run amounts to, in a few lines for the terminal; what it says of slow torsions, as tables too."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openmm_geomgnn.analysis.notes import is_warm


def headline(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Lines with the numbers of a run that are known, its verdict, and where its report is."""

    def known(*keys: str) -> bool:
        return all(_is_number(summary.get(key)) for key in keys)

    def number(key: str, digits: int = 3) -> str:
        return f"{summary[key]:.{digits}g}"

    def crossings(kind: str, word: str) -> str:
        rate = number(f"{kind}crossings_per_ns")
        return f"{number(f'{kind}crossings')} in {number(f'{word}_ns')} ns {word} ({rate} per ns)"

    lines = []
    if not summary.get("complete", True):
        lines.append(f"PARTIAL        {summary['missing']}")
    if known("crossings", "biased_ns", "crossings_per_ns"):
        parts = [crossings("", "biased")]
        if known("unbiased_crossings", "unbiased_ns", "unbiased_crossings_per_ns"):
            parts.append(crossings("unbiased_", "unbiased"))
        lines.append(f"crossings      {'; '.join(parts)}")
    rates = summary.get("slow_torsion_crossings_per_ns")
    if rates:
        lines.append(f"slow torsions  {', '.join(f'{name} {rate:.3g}' for name, rate in rates.items())} crossings per ns")
    for one in summary.get("slow_torsion_delta_F", []):
        lines.append(f"{'':14} {_wells(one)} = {_with_error(one)} kJ/mol")
    if known("mean_temperature_K"):
        hot = f", {100 * summary['hot_frame_share']:.2g} % of the frames hot" if known("hot_frame_share") else ""
        lines.append(f"temperature    {number('mean_temperature_K', 4)} K{hot}")
        if is_warm(summary):
            lines.append(f"{'':14} above the target that frames are weighed by: free energies may be off by more than said")
    if known("delta_F_kJ_per_mol"):
        error = f" +- {number('delta_F_error', 2)}" if known("delta_F_error") else ""
        definition = f" = {summary['delta_F_definition']}" if "delta_F_definition" in summary else ""
        lines.append(f"free energy    delta F = {number('delta_F_kJ_per_mol')}{error} kJ/mol{definition}")
    for place, state in enumerate(summary.get("states", []), start=1):
        lines.append(f"{f'state {place}':14} {100 * state['population']:.3g} %, {state['name']}")
    if "verdict" in summary:
        lines.append(f"verdict        {summary['verdict']}")
    return [*lines, f"report         {folder / 'report.html'}"]


def _is_number(value: Any) -> bool:
    """Whether a number is known: in memory it is nan where it is not, in JSON null."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _wells(one: Mapping[str, Any]) -> str:
    return f"{one['torsion']}: F({one['to_deg']:.0f} deg) - F({one['from_deg']:.0f} deg)"


def _with_error(one: Mapping[str, Any]) -> str:
    """A difference with its error, or why there is none."""
    if not _is_number(one["value"]):
        return "not known"
    error = f" +- {one['error']:.2g}" if _is_number(one["error"]) else ", error not known"
    return f"{one['value']:.3g}{error}"


def slow_tables(summary: Mapping[str, Any]) -> list[tuple[str, list]]:
    """A table for the report: how often slow torsions crossed, and the free energies of their wells."""
    rates = summary.get("slow_torsion_crossings_per_ns") or {}
    tables = [("Slow torsions", [["torsion", "crossings per ns"], *([name, f"{rate:.3g}"] for name, rate in rates.items())])]
    rows = [[_wells(one), _with_error(one), one["reason"]] for one in summary.get("slow_torsion_delta_F", [])]
    if rows:
        tables.append(("Free energies of the wells of slow torsions", [["difference", "kJ/mol", ""], *rows]))
    return tables if rates else []
