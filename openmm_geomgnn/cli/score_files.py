"""Files of scores: the table as JSON, from which a scoring that was stopped goes on, and its picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.analysis.canvas import save_figure
from openmm_geomgnn.analysis.score_plots import score_map
from openmm_geomgnn.cv.score_rows import ScoreRow
from openmm_geomgnn.files import atomic_write

SCORES, MAP = "scores.json", "scores.png"
FORMAT, VERSION = "openmm-geomgnn scores", 1


def load_rows(path: Path, made_from: str) -> list[ScoreRow]:
    """The rows in a file of scores of the same data and settings; none where there is no such file, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"], content["made_from"]) != (FORMAT, VERSION, made_from):
            return []
        lists = ("fold_scores", "rate_300K_per_ps", "in_basin_spread")
        return [ScoreRow(**row | {name: tuple(row[name]) for name in lists}) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def save_rows(path: Path, made_from: str, rows: Iterable[ScoreRow], chosen: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write a file of scores; chosen: what was taken for each number of components, and why."""
    content = {"format": FORMAT, "version": VERSION, "made_from": made_from, "chosen": list(chosen)}
    content["rows"] = [row.as_dict() for row in rows]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def save_map(path: Path, rows: Sequence[ScoreRow], chosen: Sequence[ScoreRow]) -> None:
    """Draw the held-out scores of linear CVs, but not of the references; `chosen` are framed.

    Raises GeomGNNError if matplotlib is not installed.
    """
    rows = [row for row in rows if row.case.is_linear and not row.is_reference]
    if not rows:
        return
    pca = sorted({row.pca for row in rows}, key=lambda value: np.inf if value is None else value)
    softening = sorted({row.softening for row in rows})
    kinds = list(dict.fromkeys((row.features, row.window, row.components) for row in rows))
    panels = []
    frames = []
    for number, kind in enumerate(kinds):
        scores = np.full((len(softening), len(pca)), np.nan)
        for row in rows:
            if (row.features, row.window, row.components) == kind:
                scores[softening.index(row.softening), pca.index(row.pca)] = row.vamp2_held_out
                if row in chosen:
                    frames.append((number, softening.index(row.softening), pca.index(row.pca)))
        several = f", {kind[2]} components" if len({row.components for row in rows}) > 1 else ""
        panels.append((f"{kind[0]}, window {kind[1]}{several}", scores))
    labels = ["all" if value is None else str(value) for value in pca]
    figure = score_map(panels, labels, [f"{value:g}" for value in softening], frames)
    save_figure(path, figure)
