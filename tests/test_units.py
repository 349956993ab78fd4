"""Numbers with units: what is read, and what the errors say."""

import math

import numpy as np
import openmm.unit as u
import pytest

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import UNITS, did_you_mean, parse_unit, quantity


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("40 kJ/mol", "kJ/mol", 40.0),
        ("10 kcal/mol", "kJ/mol", 41.84),
        ("2 fs", "ps", 0.002),
        ("0.7 fs", "ps", 0.0007),
        ("0.5 ns", "ps", 500.0),
        ("1e3 fs", "ps", 1.0),
        ("5ps", "ps", 5.0),
        ("5 picoseconds", "ps", 5.0),
        ("2*femtoseconds", "ps", 0.002),
        (" 5 ", "ps", 5.0),
        ("-.5 ps", "ps", -0.5),
        ("2 us", "ps", 2e6),
        ("2 µs", "ps", 2e6),
        ("300 K", "K", 300.0),
        ("1/ps", "1/ps", 1.0),
        ("1 /ps", "1/ps", 1.0),
        ("1 ps^-1", "1/ps", 1.0),
        ("1 ps**-1", "1/ps", 1.0),
        ("1 ps-1", "1/ps", 1.0),
        ("2 1/ns", "1/ps", 0.002),
        ("7.5 A", "nm", 0.75),
        ("7.5 Å", "nm", 0.75),
        ("7.5 angstrom", "A", 7.5),
        ("2 nanometres", "nm", 2.0),
        ("1.5 amu", "amu", 1.5),
        ("1.5 dalton", "amu", 1.5),
        ("90 deg", "rad", math.pi / 2),
        ("90°", "rad", math.pi / 2),
        ("1 kcal/mol/A^2", "kJ/mol/nm^2", 418.4),
        ("500 kJ/(mol nm^2)", "kJ/mol/nm^2", 500.0),
        ("500 kJ mol^-1 nm^-2", "kJ/mol/nm^2", 500.0),
        ("3", "", 3.0),
        (3, "ps", 3.0),
        (np.float32(0.5), "ps", 0.5),
        (np.int64(2), "ps", 2.0),
    ],
)
def test_reads(value, unit, expected):
    number = quantity(value, unit, "setting")
    assert type(number) is float
    assert number == pytest.approx(expected, rel=1e-15, abs=0)


@pytest.mark.parametrize("unit", [u.picosecond, "ps"])
def test_openmm_units_and_quantities(unit):
    assert quantity(2 * u.femtoseconds, unit, "timestep") == 0.002
    assert quantity("2 fs", unit, "timestep") == 0.002
    assert quantity(0.002, unit, "timestep") == 0.002
    assert quantity(u.Quantity(3, u.kilocalorie_per_mole), u.kilojoule_per_mole, "barrier") == pytest.approx(12.552)


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_is_openmm_s(name):
    assert parse_unit(name).is_compatible(getattr(u, UNITS[name]))
    assert parse_unit(name).conversion_factor_to(getattr(u, UNITS[name])) == 1


@pytest.mark.parametrize(
    ("value", "unit", "parts"),
    [
        ("40 kj/mol", "kJ/mol", ["barrier is '40 kj/mol'", "'kj' is not a unit", "Did you mean 'kJ'?", "kcal/mol"]),
        ("40 kJ", "kJ/mol", ["'40 kJ'", "kJ/mol, kcal/mol, J/mol", "Did you mean 'kJ/mol'?"]),
        ("1 ps", "1/ps", ["'1 ps'", "1/fs, 1/ps, 1/ns", "Did you mean '1/ps'?"]),
        ("2 kJ/mol", "ps", ["'2 kJ/mol'", "fs, ps, ns"]),
        ("2 picosecnds", u.picosecond, ["'picosecnds'", "Did you mean 'picoseconds'?", "fs, ps, ns"]),
        ("5 PS", "ps", ["Did you mean 'ps'?"]),
        ("20 C", "K", ["'C' is not a unit", "units: K"]),
        (2 * u.kelvin, u.picosecond, ["2 K", "of ps"]),
        (u.Quantity([1, 2], u.picosecond), "ps", ["[1, 2] ps", "one number"]),
        (2 * u.picosecond, "", ["without a unit"]),
        ("5 nm", "", ["without a unit"]),
        ("0,5 ns", "ps", ["decimal point"]),
        ("", "ps", ["''"]),
        ("fast", "ps", ["'fast'"]),
        ("inf", "ps", ["'inf'"]),
        ("1e999 ps", "ps", ["finite"]),
        (float("nan"), "ps", ["nan", "finite"]),
        (float("inf") * u.picosecond, "ps", ["finite"]),
        (True, "ps", ["True"]),
        (None, "ps", ["None"]),
        ([1], "ps", ["[1]"]),
        (1j, "ps", ["1j"]),
    ],
)
def test_errors_name_setting_value_and_units(value, unit, parts):
    with pytest.raises(GeomGNNError) as error:
        quantity(value, unit, "barrier")
    message = str(error.value)
    assert message.startswith("barrier is ") and "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        "5 ps/",
        "5 (ps",
        "5 ps)",
        "5 ps^",
        "5 ps^^2",
        "5 */ps",
        "5 //ps",
        "1/ps/",
        "5 $",
        "5 ps^1.5",
        "5 ps 2",
        "5 (",
        "5 )",
    ]
    + ["5 ps^123", "1_0 ps", "5 ps; import os", "5 __import__('os')", "5 ps.real", "5 2", "5 /", "5 ^2", "5 ps (mol"],
)
def test_nonsense_is_refused(text):
    for unit in ("ps", "1/ps", ""):
        with pytest.raises(GeomGNNError):
            quantity(text, unit, "x")


def test_units_are_products_from_left_to_right():
    assert parse_unit("") == u.dimensionless
    assert parse_unit("kJ/mol nm").is_compatible(u.kilojoule / u.mole * u.nanometer)
    assert parse_unit("kJ/(mol nm)").is_compatible(u.kilojoule / u.mole / u.nanometer)
    assert parse_unit("(kJ/mol)^2/(nm^2)^2") == u.kilojoule**2 / u.mole**2 / u.nanometer**4


def test_did_you_mean():
    assert did_you_mean("barier", ["pace", "barrier"]) == " Did you mean 'barrier'?"
    assert did_you_mean("CPU", ["cpu", "cuda"]) == " Did you mean 'cpu'?"
    assert did_you_mean("xyz", ["barrier"]) == "" and did_you_mean("x", []) == "" and did_you_mean(3, ["barrier"]) == ""
