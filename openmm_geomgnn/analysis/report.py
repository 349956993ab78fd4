"""The report of a run as one self-contained HTML file, and its numbers as JSON."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import numbers
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.analysis.verdict import is_hot
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: #1f2937; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.2rem 1.2rem 3rem; }
h1 { font-size: 1.75rem; margin: 0 0 1.2rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .8rem; }
h3 { font-size: 1.02rem; margin: 0 0 .3rem; }
.cards { display: flex; flex-wrap: wrap; gap: .9rem; }
.card, figure, .panel { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; }
.card { flex: 1 1 225px; padding: .9rem 1.1rem; }
.card .label { font-size: .84rem; color: #5b6472; }
.card .value { font-size: 1.4rem; font-weight: 650; line-height: 1.4; }
.card .value small { font-size: .9rem; font-weight: 500; color: #5b6472; }
.card .detail { font-size: .84rem; color: #5b6472; }
.card.attention { border-color: #d55e00; box-shadow: inset 4px 0 #d55e00; }
.notes { list-style: none; margin: 1.1rem 0 0; padding: 0; display: grid; gap: .5rem; }
.notes li { background: #eef4fb; border-left: 4px solid #0072b2; border-radius: 6px; padding: .55rem .9rem; }
.notes li.warning { background: #fdf0e6; border-left-color: #d55e00; }
.figures { display: grid; gap: 1.1rem; }
figure { margin: 0; padding: 1.1rem 1.2rem; }
figure img { display: block; max-width: 100%; height: auto; margin: .4rem auto; }
figcaption { font-size: .9rem; color: #4b5563; }
.panel { padding: .4rem 1.1rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .42rem .8rem .42rem 0; border-bottom: 1px solid #eef0f3; }
tr:last-child td { border-bottom: 0; }
th { color: #5b6472; font-weight: 600; }
td.number { font-variant-numeric: tabular-nums; }
footer { margin-top: 2rem; font-size: .84rem; color: #6b7280; }
"""


def write_report(
    path: PathLike,
    title: str,
    summary: dict[str, Any],
    figures: Iterable[tuple[str, str, Figure]] = (),
    notes: Sequence[str] = (),
    tables: Iterable[tuple[str, Sequence[Sequence[Any]]]] = (),
) -> None:
    """Write `report_page` to a file, atomically."""
    text = report_page(title, summary, figures, notes, tables)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def report_page(
    title: str,
    summary: dict[str, Any],
    figures: Iterable[tuple[str, str, Figure]] = (),
    notes: Sequence[str] = (),
    tables: Iterable[tuple[str, Sequence[Sequence[Any]]]] = (),
) -> str:
    """Make the text of one self-contained HTML file: pictures are inline, and nothing is loaded from elsewhere.

    summary: dict of plain values; those of `analyse_biased_run` fill the cards on top, and all that are known a table at the
    end. figures: list of (title, caption, matplotlib Figure). notes: sentences; those that start with "Warning" are
    highlighted. tables: list of (title, rows), each row a list, the first one the head.
    Raises GeomGNNError if the rows of a table differ in length.
    """
    body = [f"<h1>{_escape(title)}</h1>", _cards(summary), _notes(notes)]
    if figures:
        body.append('<h2>Pictures</h2><div class="figures">')
        body += [_figure(*figure) for figure in figures]
        body.append("</div>")
    for table_title, rows in tables:
        body.append(f"<h2>{_escape(table_title)}</h2>{_table(rows, table_title)}")
    if summary:
        known = {key: value for key, value in plain(summary).items() if value is not None}
        rows = [["quantity", "value"], *([key, _plain_text(value)] for key, value in known.items())]
        body.append(f"<h2>All numbers</h2>{_table(rows, 'All numbers')}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n<footer>Written by openmm-geomgnn.</footer>\n</main>\n</body>\n</html>\n"
    )


def write_summary(path: PathLike, summary: dict[str, Any]) -> None:
    """Write `summary` as JSON with plain numbers, atomically; nan and infinite values become null."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(plain(summary), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """Convert numpy types, tuples and paths in `value` to types of JSON, and nan and inf to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    raise GeomGNNError(f"A summary cannot hold {type(value).__name__} values ({value!r}). Give numbers, text or lists.")


def _cards(summary: dict[str, Any]) -> str:
    """Make cards of the headline numbers that are known."""
    cards = []

    def known(key: str) -> bool:
        return _finite(summary.get(key)) is not None

    if known("crossings_per_ns"):
        count = f"{_number(summary.get('crossings'), 6)} in {_number(summary.get('biased_ns'), 3)} ns, with bias"
        value = f"{_number(summary['crossings_per_ns'], 3)} <small>per ns</small>"
        cards.append(("Crossings", value, count, summary["crossings_per_ns"] == 0))
    if known("unbiased_crossings_per_ns"):
        count = f"{_number(summary.get('unbiased_crossings'), 6)} in {_number(summary.get('unbiased_ns'), 3)} ns"
        value = f"{_number(summary['unbiased_crossings_per_ns'], 3)} <small>per ns</small>"
        cards.append(("Crossings without bias", value, count, False))
    if known("delta_F_kJ_per_mol"):
        error = f" ± {_number(summary['delta_F_error'], digits=1)}" if known("delta_F_error") else ""
        value = f"{_number(summary['delta_F_kJ_per_mol'], digits=1)}{error} <small>kJ/mol</small>"
        detail = "one standard error" if known("delta_F_error") else "its error is not known"
        definition = summary.get("delta_F_definition", "F(B) - F(A)").replace("-", "−")
        cards.append(("Free-energy difference", value, f"{detail}; {definition}", not known("delta_F_error")))
    if known("mean_temperature_K"):
        target, mean = _finite(summary.get("target_temperature_K")), _finite(summary["mean_temperature_K"])
        details = [f"target {target:.0f} K"] if target else []
        if known("hot_frame_share"):
            details.append(f"{100 * summary['hot_frame_share']:.1f} % hot frames")
        cards.append(("Mean temperature", f"{mean:.1f} <small>K</small>", ", ".join(details), is_hot(summary)))
    if known("biased_ns"):
        walkers = _finite(summary.get("n_walkers"))
        detail = f"{walkers:.0f} walker{'s' if walkers != 1 else ''}" if walkers else ""
        cards.append(("Simulated with bias", f"{_number(summary['biased_ns'], 3)} <small>ns</small>", detail, False))
    if known("wall_seconds"):
        cards.append(("Wall time", _duration(summary["wall_seconds"]), "", False))
    if not cards:
        return ""
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>"


def _card(label: str, value: Any, detail: str, attention: bool) -> str:
    """Make a card; `value` is markup made here from numbers, everything else is escaped."""
    return (
        f'<div class="card{" attention" if attention else ""}"><div class="label">{_escape(label)}</div>'
        f'<div class="value">{value}</div><div class="detail">{_escape(detail)}</div></div>'
    )


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    # warnings first: they change how everything below is read
    ordered = sorted(notes, key=lambda note: not _is_warning(note))
    items = (f"<li{' class=warning' if _is_warning(note) else ''}>{_escape(note)}</li>" for note in ordered)
    return f'<ul class="notes">{"".join(items)}</ul>'


def _is_warning(note: str) -> bool:
    return note.lower().startswith("warning")


def _figure(title: str, caption: str, figure: Figure) -> str:
    picture = io.BytesIO()
    # no metadata: the same data give the same file
    figure.savefig(picture, format="png", dpi=144, metadata={"Software": None})
    encoded = base64.b64encode(picture.getvalue()).decode("ascii")
    width = round(figure.get_size_inches()[0] * 96)
    return (
        f"<figure><h3>{_escape(title)}</h3>"
        f'<img alt="{_escape(title)}" style="width: {width}px" src="data:image/png;base64,{encoded}">'
        f"<figcaption><b>How to read:</b> {_escape(caption)}</figcaption></figure>"
    )


def _table(rows: Sequence[Sequence[Any]], title: str) -> str:
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    if len({len(row) for row in rows}) > 1:
        raise GeomGNNError(
            f"The rows of the table {title!r} have {[len(row) for row in rows]} cells. Give every row as many as the head."
        )
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f'<td class="number">{_escape(_plain_text(cell))}</td>' for cell in row) + "</tr>"
        for row in rows[1:]
    )
    return f'<div class="panel"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain_text(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join("–" if item is None else _plain_text(item) for item in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> float | None:
    """`value` as a float; None if it is absent or nan."""
    if value is None or isinstance(value, str):
        return None
    return float(value) if math.isfinite(value) else None


def _number(value: Any, significant: int | None = None, digits: int | None = None) -> str:
    value = _finite(value)
    if value is None:
        return "unknown"
    text = f"{value:.{digits}f}" if digits is not None else f"{value:.{significant}g}"
    # 1.2e+03 does not belong on top of a page
    if "e" in text and abs(value) >= 1:
        text = f"{value:.0f}"
    return text.replace("-", "−")


def _duration(seconds: float) -> str:
    seconds = float(seconds)
    if seconds < 60:
        return f"{seconds:.0f} <small>s</small>"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} <small>h</small> {minutes % 60} <small>min</small>"
    return f"{minutes} <small>min</small> {int(seconds % 60)} <small>s</small>"


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)
