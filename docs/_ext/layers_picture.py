"""The picture of the layers, from the order that tests/test_layers.py holds the package to."""

import ast
import html
from pathlib import Path

TEST = Path(__file__).resolve().parents[2] / "tests" / "test_layers.py"
WORDS = {
    "torchmdnet_ext": "models, heads and data sets for TorchMD-Net's trainer; its networks evaluated fast",
    "representation": "from atoms to residue tokens: selection, windows, encoders, stores",
    "koopman": "slow modes: covariances, VAMP, VAMPnets, validation",
    "cv": "the collective variable and its file: mixers, fits, students",
    "force": "the CV as an OpenMM force: backends, integrators, failures",
    "sampling": "biases, walkers, checkpoints, COLVAR",
    "analysis": "weights, free energies, error bars, crossings, the report",
    "conformers": "data for pre-training",
    "testing": "the tests that every encoder, mixer, CV and bias passes",
    "cli": "the command line and the settings in YAML",
}
GROUND = "used by all rooms above"


def rooms():
    """The rows of the house, from the bottom to the top."""
    for node in ast.parse(TEST.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROOMS":
            return [row.split() for row in ast.literal_eval(node.value)]
    raise ValueError(f"{TEST} has no ROOMS")


def layers():
    """Boxes in rows, the top of the house first; on a narrow screen those of a row are one below the other."""
    lines = ['<figure class="layers">']
    for row in reversed(rooms()):
        if "__init__" in row:
            continue
        if not set(row) <= WORDS.keys():
            row = [" ".join(sorted(name for name in row if not name.startswith("_")))]
        boxes = [f"<div><b>{html.escape(name)}</b><span>{html.escape(WORDS.get(name, GROUND))}</span></div>" for name in row]
        lines.append(f'<div class="row">{"".join(boxes)}</div>')
    caption = "A room imports only from rooms below it; rooms side by side do not know each other."
    return "\n".join([*lines, f"<figcaption>{caption}</figcaption></figure>"])
