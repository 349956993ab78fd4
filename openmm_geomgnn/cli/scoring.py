"""Scores CVs of data that are read already, keeps the rows, says which CV is chosen and why."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from openmm_geomgnn.cli.progress import echo, progress_bars
from openmm_geomgnn.cli.score_files import MAP, SCORES, load_rows, save_map, save_rows
from openmm_geomgnn.cli.settings.sections import CVSection
from openmm_geomgnn.cli.settings.yaml_text import write_yaml
from openmm_geomgnn.cli.tables import print_table
from openmm_geomgnn.cv.fit_settings import FitSettings
from openmm_geomgnn.cv.score_choice import Choice, choose
from openmm_geomgnn.cv.score_features import NO_WINDOW
from openmm_geomgnn.cv.score_rows import REFERENCES, ScoreRow
from openmm_geomgnn.cv.scores import ScoreSettings, score_cvs
from openmm_geomgnn.formatting import format_values
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.unfinished import Unfinished, fingerprint

# where in the work on one kind of features a stage begins, and its share, in per cent
STAGES = {"embed": (0, 40), "rates": (40, 20), "folds": (60, 20), "stiffness": (80, 20)}
WIDTH = 100  # characters of a table where there is no terminal


class _Names(dict[str, tuple[str, str]]):
    """What is said of the progress of each kind of features."""

    def __missing__(self, what: str) -> tuple[str, str]:
        return f"Scoring {what}", "%"


def scores_in(
    folder: Path,
    trajectories: Any,
    topology: Any,
    settings: FitSettings,
    scoring: ScoreSettings,
    unfinished: Any = None,
    **biased: Any,
) -> tuple[list[ScoreRow], str]:
    """Score CVs, with progress bars; rows that are in the folder already are not computed again.

    Parameters
    ----------
    folder : Path
        In which rows are kept.
    trajectories, topology, settings, scoring
        As of `cv.scores.score_cvs`.
    unfinished : callable, optional
        From a window to an `Unfinished`, by default one in the folder.
    biased
        Its `biases` and `frame_intervals`.

    Returns
    -------
    rows : list of ScoreRow
    made_from : str
        Fingerprint of the data and settings, which the file has.
    """
    made_from = _fingerprint(trajectories, settings, scoring, biased)
    path = folder / SCORES
    parts: dict[str, Unfinished] = {}

    def kept(window: str) -> Unfinished:
        parts[window] = unfinished(window) if unfinished else Unfinished(folder / f"tokens.{window}")
        return parts[window]

    with progress_bars(_Names()) as move:

        def progress(what: str, stage: str, done: float, total: float) -> None:
            begins, share = STAGES[stage]
            move(what, round(begins + share * done / total), 100)

        rows = score_cvs(
            trajectories,
            topology,
            settings,
            scoring,
            progress,
            known=load_rows(path, made_from),
            keep=lambda found: save_rows(path, made_from, found),
            unfinished=kept,
            **biased,
        )
    if unfinished is None:
        for part in parts.values():
            part.remove()
    return rows, made_from


def conclude(
    folder: Path, rows: Sequence[ScoreRow], made_from: str, section: CVSection, choices: Sequence[Choice]
) -> list[CVSection]:
    """Show the table and what is chosen, write both and the picture; returns the chosen sections."""
    sections = [_chosen_section(section, choice.row) for choice in choices]
    entries = []
    for choice, chosen in zip(choices, sections, strict=True):
        show(rows, choice.row)
        echo(f"Chosen: {in_words(choice.row)}. {choice.why}.")
        for remark in choice.remarks:
            echo(f"{remark}.")
        text = as_yaml(chosen)
        entries.append({"row": choice.row.as_dict(), "why": choice.why, "remarks": list(choice.remarks), "cv": text})
    save_rows(folder / SCORES, made_from, rows, entries)
    save_map(folder / MAP, rows, [choice.row for choice in choices])
    return sections


def choices_of(rows: Sequence[ScoreRow], scoring: ScoreSettings, step: float | None, temperature: float) -> list[Choice]:
    """What is chosen for each number of components; step: ps between evaluations of the bias."""
    return [choose(rows, components, step, temperature) for components in scoring.grid.components]


def in_words(row: ScoreRow) -> str:
    """The settings of a row."""
    if not row.case.is_linear:
        return f"mixer {row.mixer}, window {row.window}"
    pca = "all principal components" if row.pca is None else f"{row.pca} principal components"
    return f"{pca}, softening {row.softening:g} ps, window {row.window}"


def as_yaml(section: CVSection) -> str:
    """The section as it stands in a settings file: what is chosen, and what is no default."""
    full = section.model_dump(mode="json")
    chosen = {"pca", "softening"} if section.mixer == "none" else {"mixer", "estimator"}
    named = {"window", "lag", "components", *chosen} | section.model_dump(exclude_defaults=True).keys()
    return write_yaml({"cv": {name: value for name, value in full.items() if name in named}})


def _chosen_section(section: CVSection, row: ScoreRow) -> CVSection:
    chosen = {name: getattr(row, name) for name in ("window", "components", "mixer")} | {"auto": False}
    if row.case.is_linear:
        chosen |= {"pca": row.pca, "softening": row.softening}
    else:
        chosen |= {"estimator": "vampnet"}
    return section.model_copy(update=chosen)


def show(rows: Sequence[ScoreRow], chosen: ScoreRow) -> None:
    """Print the table of one number of components; of the references only the best of each window."""
    rows = [row for row in rows if row.components == chosen.components]
    with_gap = any(row.gap is not None for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("")
    table.add_column("features")
    for name in ("pca", "softening", "train", "held out", "rate", "spread", "stiffness", *(["gap"] if with_gap else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in _shown(rows):
        table.add_row(*_cells(row, row is chosen, with_gap), style="bold" if row is chosen else "dim" * row.is_reference)
    print_table(table, WIDTH)


def _shown(rows: Sequence[ScoreRow]) -> Iterator[ScoreRow]:
    yield from (row for row in rows if not row.is_reference)
    references: dict[tuple[str, str], list[ScoreRow]] = defaultdict(list)
    for row in rows:
        if row.is_reference:
            references[row.features, row.window].append(row)
    for found in sorted(references.values(), key=lambda group: REFERENCES.index(group[0].features)):
        yield max(found, key=lambda row: row.vamp2_held_out)


def _cells(row: ScoreRow, chosen: bool, with_gap: bool) -> list[str]:
    few = row.pca is None or row.pca_components < row.pca
    pca = f"{'all' if row.pca is None else row.pca}" + (f" ({row.pca_components})" if few else "")
    pca, softening = (pca, f"{row.softening:g} ps") if row.case.is_linear else (row.mixer, "")
    cells = [
        "*" if chosen else "",
        row.features if row.window == NO_WINDOW else f"{row.features}, {row.window}",
        pca,
        softening,
        f"{row.vamp2_training:.3f}",
        f"{row.vamp2_held_out:.3f} +- {row.vamp2_held_out_error:.3f}",
        format_values(row.rate_300K_per_ps),
        format_values(row.in_basin_spread, 2),
        f"{row.stiffness:.3g}",
    ]
    return [*cells, "" if row.gap is None else f"{row.gap:.2f}"] if with_gap else cells


def _fingerprint(trajectories: Any, settings: FitSettings, scoring: ScoreSettings, biased: dict[str, Any]) -> str:
    """Hash of everything on which rows depend, beside what stands in a row."""
    fixed = asdict(settings)
    for name in ("encoder", "pca", "softening", "n_components"):
        del fixed[name]
    del fixed["tokens"]["window"], fixed["tokens"]["neighbours"]
    stored = isinstance(trajectories, Embeddings)
    data = [trajectories.trajectories] if stored else [part.xyz for part in trajectories]
    biases = [b for b in biased.get("biases", ()) if b is not None]
    which = [b is not None for b in biased.get("biases", ())]
    encoder = Encoder.load(settings.encoder).content_hash()
    trains = any(name != "none" for name in scoring.grid.mixers)
    how = scoring.folds, scoring.hold_out, scoring.gap, scoring.training if trains else {}
    return fingerprint(*data, *biases, which, biased.get("frame_intervals"), fixed, encoder, how)
