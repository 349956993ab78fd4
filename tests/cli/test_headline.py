"""The lines of a run for the terminal."""

import math
from pathlib import Path

import pytest

from openmm_geomgnn.cli.headline import headline, slow_tables


@pytest.mark.parametrize("unknown", [math.nan, None])  # in memory, and read from JSON
def test_free_energies_of_wells_that_are_known_or_not(unknown):
    wells = [(3.296, 0.437), (1.5, unknown), (unknown, unknown)]
    summary = {
        "slow_torsion_crossings_per_ns": {"omega": 4.75},
        "slow_torsion_delta_F": [
            {"torsion": "omega", "from_deg": -178.2, "to_deg": -1.4, "value": value, "error": error, "reason": "why"}
            for value, error in wells
        ],
    }
    said = ["3.3 +- 0.44", "1.5, error not known", "not known"]
    lines = [line.strip() for line in headline(Path("run"), summary)]
    assert lines[:-1] == [
        "slow torsions  omega 4.75 crossings per ns",
        *(f"omega: F(-1 deg) - F(-178 deg) = {one} kJ/mol" for one in said),
    ]
    (_, crossed), (_, differences) = slow_tables(summary)
    assert crossed[1:] == [["omega", "4.75"]] and [row[1] for row in differences[1:]] == said


@pytest.mark.parametrize(
    ("mean", "length", "warm"), [(302.0, 4.0, False), (303.0, 4.0, True), (303.0, 1.0, False), (math.nan, 4.0, False)]
)
def test_a_run_that_was_warm_says_so_where_its_temperature_is(mean, length, warm):
    lines = headline(Path("run"), {"mean_temperature_K": mean, "target_temperature_K": 300.0, "biased_ns": length})
    assert any("above the target" in line for line in lines) == warm
