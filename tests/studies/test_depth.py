"""`geomgnn diagnose`: what is said of layers, on networks whose answer is known, and the command."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from openmm_geomgnn import Encoder
from openmm_geomgnn.cli.main import app
from openmm_geomgnn.studies.depth import Conformation, Depth, layer_rows, measure_depth, reach_rows
from openmm_geomgnn.studies.diagnostics import Reach, Smoothing

pytestmark = pytest.mark.slow
FLAT = Smoothing(np.ones(4), np.array([2.0, 5.0, 6.0, 6.0]))
NEAR = Reach(np.array([1.5, 1.5, 7.5]), np.array([1.0, 1.0, 2.0]), np.array([0.3, 0.5, 0.1]))


class TestWords:
    @pytest.mark.parametrize(
        ("smoothing", "warned"),
        [
            (FLAT, False),
            (Smoothing(np.ones(4), np.array([2.0, 8.0, 7.0, 6.0])), True),  # the rank falls
            (Smoothing(np.array([1.0, 0.9, 0.6, 0.4]), FLAT.rank), True),  # neighbours become alike
        ],
    )
    def test_over_smoothing(self, smoothing, warned):
        words = Depth("mine", "chain", smoothing, NEAR).over_smoothing_in_words()
        assert words.startswith("Warning: mine on chain: features become alike") is warned
        assert warned or "no random weights to compare with" in words

    def test_under_reaching(self):
        seen = Depth("mine", "chain", FLAT, NEAR, random_reach=(NEAR, NEAR)).under_reaching_in_words()
        share = 0.1 / np.sqrt((0.3**2 + 0.5**2) / 2)
        assert f"counts {share:.2g} of what is one" in seen and "Warning" not in seen and f"{share:.1g})" in seen
        blind = Reach(NEAR.distance, NEAR.hops, np.array([0.3, 0.5, 0.001]))
        assert Depth("mine", "chain", FLAT, blind).under_reaching_in_words().startswith("Warning")
        everywhere = Reach(NEAR.distance[:2], NEAR.hops[:2], NEAR.jacobian[:2])
        assert "Give a larger molecule" in Depth("mine", "chain", FLAT, everywhere).under_reaching_in_words()


def test_rows_are_what_was_measured():
    pos = np.zeros((8, 3))
    pos[:, 0] = 3.0 * np.arange(8)
    encoder = Encoder.load("et-64")
    (one,) = measure_depth([encoder], [Conformation("chain", np.full(8, 6), pos)], random_weights=2, draws=2)
    layers, reach = layer_rows([one]), reach_rows([one])
    assert [row["layer"] for row in layers] == [0, 1, 2, 3]
    assert [row["rank"] for row in layers] == one.smoothing.rank.tolist()
    expected = np.mean([other.rank for other in one.random_smoothing], axis=0)
    np.testing.assert_allclose([row["random_rank"] for row in layers], expected)
    assert len(one.random_reach) == 2 and all(row["random_rank_deviation"] >= 0 for row in layers)
    hops = [row for row in reach if "messages" in row]
    assert {row["messages"]: row["jacobian"] for row in hops} == one.reach.by_hops()
    ends = [(row["from_angstrom"], row["to_angstrom"]) for row in reach if "messages" not in row]
    assert ends == [(low, low + 2) for low in (2, 6, 8, 12, 14, 18, 20)]  # 3, 6, 9 ... 21 angstrom


def test_command(tmp_path):
    protocol = Path(__file__).resolve().parents[2] / "protocols" / "diagnose.yaml"
    changes = [
        "random_weights=1",
        "draws=1",
        "encoders=[et-64]",
        "structures=[ala2-c7eq.pdb]",
        f"output={tmp_path / 'found'}",
    ]
    done = CliRunner().invoke(app, ["diagnose", str(protocol), *(part for change in changes for part in ("--set", change))])
    assert done.exit_code == 0, done.output
    names = {"layers.csv", "reach.csv", "diagnose.json", "report.html", "smoothing.png", "reach.png"}
    assert names <= {path.name for path in (tmp_path / "found").iterdir()}
    with open(tmp_path / "found" / "layers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "found" / "diagnose.json").read_text())
    assert [float(row["rank"]) for row in rows] == pytest.approx([row["rank"] for row in found["layers"]], rel=1e-5)
    assert (
        len(rows) == 4
        and len(found["notes"]) == 2
        and all(note in done.output.replace("\n", " ") for note in found["notes"])
    )
