"""The picture of the layers, from the order that tests/test_layers.py holds the package to."""

import ast
import html
from pathlib import Path

TEST = Path(__file__).resolve().parents[2] / "tests" / "test_layers.py"
WORDS = {
    "torchmdnet_ext": "models, heads and datasets for TorchMD-Net's trainer; its networks evaluated fast",
    "representation": "from atoms to residue tokens: selection, windows, encoders, stores",
    "koopman": "slow modes: covariances, VAMP, VAMPnets, validation",
    "cv": "the collective variable and its file: mixers, fits, students",
    "force": "the CV as an OpenMM force: backends, integrators, failures",
    "sampling": "biases, walkers, checkpoints, COLVAR",
    "analysis": "weights, free energies, error bars, crossings, the report",
    "conformers": "data for pre-training",
    "cli": "the command line and the settings in YAML",
}
WIDTH, ROW, GAP, LEFT = 720, 46, 8, 4


def rooms():
    """The rows of the house, from the bottom to the top."""
    for node in ast.parse(TEST.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROOMS":
            return [row.split() for row in ast.literal_eval(node.value)]
    raise ValueError(f"{TEST} has no ROOMS")


def layers():
    """An SVG in the page, whose text takes the page's colour."""
    rows = [row for row in reversed(rooms()) if "__init__" not in row]
    height = len(rows) * (ROW + GAP) + GAP
    lines = [f'<figure class="layers"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="the layers">']
    for k, row in enumerate(rows):
        y, width = GAP + k * (ROW + GAP), (WIDTH - 2 * LEFT - GAP * (len(row) - 1)) / len(row)
        if "errors" in row:
            row, width = [" ".join(sorted(name for name in row if not name.startswith("_")))], WIDTH - 2 * LEFT
        for i, name in enumerate(row):
            x = LEFT + i * (width + GAP)
            words = WORDS.get(name, "used by all above")
            lines.append(f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{ROW}" rx="6"/>')
            lines.append(f'<text class="name" x="{x + 12:g}" y="{y + 19}">{html.escape(name)}</text>')
            lines.append(f'<text class="words" x="{x + 12:g}" y="{y + 36}">{html.escape(words)}</text>')
    caption = "A room imports only from rooms below it; rooms side by side do not know each other."
    lines += ["</svg>", f"<figcaption>{caption}</figcaption></figure>"]
    return "\n".join(lines)
