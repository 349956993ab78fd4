"""Labels at many levels of theory: QM9's own is reproduced, physics holds, and a study goes on where it was stopped."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from openmm_geomgnn.cli.label_noise import run_label_noise
from openmm_geomgnn.cli.settings.yaml_files import load_label_noise
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.label_molecules import LabelledMolecule, read_molecules
from openmm_geomgnn.studies.label_noise import LabelGrid, LabelRow, compute_labels
from openmm_geomgnn.studies.label_spread import Spread, spread_beyond_shifts, summarise_labels
from openmm_geomgnn.studies.quantum import QM9_BASIS, QM9_FUNCTIONAL, OrbitalEnergies, SCFSettings, compute_orbitals

pytest.importorskip("pyscf")

SMALL = "molecules: [O, 2]\nfunctionals: [pbe, hf]\nbases: [STO-3G, 3-21G]\nprocesses: 1\nmodel_mae: 0.05\n"

COMMAND = (sys.executable, "-c", "from openmm_geomgnn.cli.main import main; main()", "label-noise")


@pytest.fixture(scope="module")
def water():
    return read_molecules([3])[0]


def orbitals(molecule, functional, basis, **settings):
    return compute_orbitals(molecule.z, np.array(molecule.pos), functional, basis, SCFSettings(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, 2, 3])
def test_labels_of_qm9_are_reproduced(index):
    """To the digits that are published: 1e-4 hartree for orbitals, 1e-4 debye for dipoles, 1e-6 hartree for the energy."""
    molecule = read_molecules([index])[0]
    found = orbitals(molecule, QM9_FUNCTIONAL, QM9_BASIS)
    assert found.problem is None and set(molecule.published) == {"gap", "homo", "lumo", "dipole"}
    for name in ("gap", "homo", "lumo"):
        assert getattr(found, name) == pytest.approx(molecule.published[name], abs=0.0015), name
    assert found.dipole == pytest.approx(molecule.published["dipole"], abs=1e-4)
    # the internal energy at 0 K without the zero-point energy, from the same files
    total = {1: -40.47893 - 0.044749, 2: -56.525887 - 0.034358, 3: -76.404702 - 0.021375}
    assert found.energy == pytest.approx(total[index], abs=1e-5)


@pytest.mark.slow
def test_the_basis_of_that_name_elsewhere_is_another(water):
    """The d functions of 6-31G(2df,p) are not those that Gaussian has: ten times the error of a good network."""
    ours = orbitals(water, QM9_FUNCTIONAL, "6-31G(2df,p)")
    assert abs(ours.gap - water.published["gap"]) > 0.015 and abs(ours.dipole - water.published["dipole"]) > 0.1


@pytest.mark.slow
def test_exact_exchange_widens_the_gap(water):
    """Local density, 20, 50 and 100 % exact exchange; the occupied orbital sinks, the empty one rises."""
    found = [orbitals(water, functional, "6-31G*") for functional in ("svwn", "b3lyp", "bhandhlyp", "hf")]
    assert (np.diff([one.gap for one in found]) > 1).all()
    assert (np.diff([one.homo for one in found]) < 0).all() and (np.diff([one.lumo for one in found]) > 0).all()
    for one in found:
        assert one.gap == pytest.approx(one.lumo - one.homo, abs=1e-6)


def test_diffuse_functions_lower_the_empty_orbital(water):
    without, with_them = (orbitals(water, "hf", basis) for basis in ("6-31G**", "6-31++G**"))
    assert with_them.lumo < without.lumo - 1 and abs(with_them.homo - without.homo) < 0.6
    assert with_them.energy < without.energy and with_them.functions > without.functions


def test_a_label_does_not_depend_on_the_place_of_the_molecule(water):
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    moved = compute_orbitals(water.z, np.array(water.pos) @ turn + 3, "hf", "3-21G")
    here = orbitals(water, "hf", "3-21G")
    for name in ("gap", "homo", "dipole", "energy"):
        assert getattr(moved, name) == pytest.approx(getattr(here, name), abs=2e-6)


@pytest.mark.slow
def test_what_fails_is_a_row(water):
    unconverged = orbitals(water, "hf", "3-21G", max_cycles=2)
    assert unconverged == OrbitalEnergies(problem="the SCF has not converged in 2 cycles")
    assert "empty orbital" in compute_orbitals([2], np.zeros((1, 3)), "hf", "STO-3G").problem
    overlapping = LabelledMolecule("twice", (1, 1), ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    grid = LabelGrid((overlapping, water), ("hf",), ("STO-3G",))
    failed, fine = compute_labels(grid)
    assert failed.result.problem and failed.result.gap is None
    assert fine.result.problem is None and fine.result.gap > 20
    summary = summarise_labels([failed, fine], grid, ["gap"], {"a": 0.1})
    assert summary["failed"] == 1 and summary["properties"]["gap"]["molecules"]["twice"]["all"] is None


@pytest.mark.slow
def test_rows_do_not_depend_on_the_number_of_processes(water):
    grid = LabelGrid((water,), ("hf", "svwn"), ("STO-3G",))
    assert compute_labels(grid, 2) == compute_labels(grid, 1)


# ----------------------------------------------------------------------------------------------------------- statistics


def test_spread_is_that_of_numpy():
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.number, spread.mean, spread.smallest, spread.largest) == (3, 3.0, 1.0, 6.0)
    assert spread.std == pytest.approx(np.sqrt(7)) and spread.as_dict()["range"] == 5 and Spread.of([1.0]) is None


def test_constants_of_levels_do_not_count():
    levels, molecules = np.array([0.0, 4.0, -3.0, 1.0]), np.array([1.0, 9.0, 5.0])

    def table(rest):
        return {f"m{i}": {("f", str(k)): value for k, value in enumerate(row)} for i, row in enumerate(rest)}

    additive = molecules[:, None] + levels
    assert spread_beyond_shifts(table(additive)) == pytest.approx(0, abs=1e-12)
    noise = np.random.default_rng(2).normal(scale=0.3, size=(60, 40))
    assert spread_beyond_shifts(table(noise + np.arange(40) + np.arange(60)[:, None])) == pytest.approx(0.3, rel=0.05)
    assert spread_beyond_shifts(table(additive[:1])) is None and spread_beyond_shifts({}) is None


def test_a_model_beside_the_spread(water):
    grid = LabelGrid((water,), ("pbe", "b3lyp"), ("STO-3G", QM9_BASIS))
    gap = water.published["gap"]
    values = {("pbe", "STO-3G"): gap + 3, ("b3lyp", "STO-3G"): gap + 1, ("pbe", QM9_BASIS): gap + 0.01}
    rows = [
        LabelRow(water.name, *level, OrbitalEnergies(gap=value, functions=len(level[1]))) for level, value in values.items()
    ]
    rows.append(LabelRow(water.name, "b3lyp", QM9_BASIS, OrbitalEnergies(gap=gap, functions=30)))
    summary = summarise_labels(rows, grid, ["gap"], {"good": 0.005, "fair": 0.02})
    own = summary["properties"]["gap"]["molecules"]["gdb3"]
    assert own["published"] == own["ours_at_the_published_level"] == gap and own["largest_basis"] == QM9_BASIS
    assert own["mean_absolute_difference_to_published"] == pytest.approx(4.01 / 4)
    assert own["functionals_in_largest_basis"]["range"] == pytest.approx(0.01)
    assert own["bases_for_each_functional"]["b3lyp"]["std"] == pytest.approx(np.std([0, 1], ddof=1), abs=1e-6)
    within = {name: model["within_mae_of_published"]["gdb3"] for name, model in summary["models"].items()}
    assert within == {"good": "0 of 3", "fair": "1 of 3"}
    assert summary["models"]["good"]["std_over_mae"]["gdb3"] == pytest.approx(own["all"]["std"] / 0.005, abs=0.01)


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a study that was done in a single go, its file of settings, and what was said."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "s.yaml").write_text(SMALL)
    done = subprocess.run([*COMMAND, "s.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder / "runs" / "s", folder / "s.yaml", done.stdout


@pytest.fixture
def counts(monkeypatch):
    """Numbers of rows, one for each time that the file was written."""
    from openmm_geomgnn.cli import label_noise as command

    save, numbers = command.save_label_rows, []

    def counted(path, made_from, rows, summary=None):
        numbers.append(len(rows))
        save(path, made_from, rows, summary)

    monkeypatch.setattr(command, "save_label_rows", counted)
    return numbers


@pytest.mark.slow
def test_command(whole):
    folder, _, output = whole
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "labels.json",
        "labels.md",
        "gap.png",
    }
    content = json.loads((folder / "labels.json").read_text())
    assert [(row["molecule"], row["basis"], row["functional"]) for row in content["rows"]] == [
        (molecule, basis, functional)
        for molecule in ("gdb3", "gdb2")
        for basis in ("STO-3G", "3-21G")
        for functional in ("pbe", "hf")
    ]
    assert content["summary"]["failed"] == 0 and content["summary"]["properties"]["gap"]["beyond_shifts"] > 0
    assert "gap (eV) of gdb3 (H2O), published: 9.837" in output and "8 calculations, 0 failed" in output
    assert (folder / "labels.md").read_text() in output
    assert (folder / "gap.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_killed_and_continued(whole, tmp_path, counts):
    """A study that is killed, or whose file is damaged, ends with the bytes of one in a single go."""
    expected, file = (whole[0] / "labels.json").read_bytes(), tmp_path / "parts" / "labels.json"
    output = {"output": str(tmp_path / "parts")}
    process = subprocess.Popen([*COMMAND, str(whole[1]), "--set", f"output={output['output']}"], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 50
    while not file.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = len(json.loads(file.read_text())["rows"])
    assert 1 <= there < 8
    run_label_noise(load_label_noise(whole[1], output))
    assert counts == [*range(there + 1, 9), 8] and file.read_bytes() == expected
    # all are there: nothing is computed
    counts.clear()
    run_label_noise(load_label_noise(whole[1], output))
    assert counts == [8] and file.read_bytes() == expected
    # calculations that are done in another way: nothing is kept
    counts.clear()
    run_label_noise(load_label_noise(whole[1], output | {"grid_level": 2, "molecules": [3], "bases": "STO-3G"}))
    assert counts == [1, 2, 2]
    # what is damaged is not there; of what is there, that which is asked for is kept
    file.write_bytes(expected[:900])
    counts.clear()
    run_label_noise(load_label_noise(whole[1], output | {"functionals": "hf", "bases": "STO-3G"}))
    assert counts == [1, 2, 2]
    counts.clear()
    run_label_noise(load_label_noise(whole[1], output | {"functionals": "hf"}))
    assert counts == [3, 4, 4]
    hf = [row for row in json.loads(expected)["rows"] if row["functional"] == "hf"]
    assert json.loads(file.read_text())["rows"] == hf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"functionals": ["pbe", "b3lpy"]}, "functional 'b3lpy' is not one.*Did you mean 'b3lyp'"),
        ({"functionals": ["pbe", "b3lyp-d3bj"]}, "'b3lyp-d3bj' (cannot be computed|is not one)"),
        ({"bases": ["def2-tzpv"]}, "basis 'def2-tzpv' is not one.*Did you mean 'def2tzvp'"),
        ({"functionals": ["pbe", "pbe"]}, "functionals has pbe twice"),
        ({"functionals": []}, "at least|list of 1"),
        ({"molecules": [3, "O"]}, "gdb3 is named twice"),
        ({"molecules": [999999]}, "no molecule of index 999999"),
        ({"molecules": [True]}, "Molecule 1 is True"),
        ({"molecules": ["none.xyz"]}, "There is no molecule 'none.xyz'"),
        ({"molecules": ["radical.xyz"]}, "radical .CH3. has 9 electrons"),
        ({"molecules": ["two.xyz"]}, "2 frames"),
        ({"molecules": ["iodide.xyz"], "bases": ["6-31G(2df,p)-gaussian"]}, "for the element I"),
        ({"model_mae": 0}, "greater than 0"),
        ({"properties": ["band"]}, "'gap'"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    (tmp_path / "s.yaml").write_text(SMALL)
    (tmp_path / "radical.xyz").write_text("4\n\nC 0 0 0\nH 1 0 0\nH 0 1 0\nH 0 0 1\n")
    (tmp_path / "two.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.7\n" * 2)
    (tmp_path / "iodide.xyz").write_text("2\n\nH 0 0 0\nI 0 0 1.6\n")
    with pytest.raises(GeomGNNError, match=message) as error:
        load_label_noise(tmp_path / "s.yaml", changes)
    assert "s.yaml" in str(error.value)


def test_a_molecule_from_a_file(tmp_path):
    (tmp_path / "h2.xyz").write_text("2\ncomment\nH 0 0 0\nH 0 0 0.74\n")
    (tmp_path / "s.yaml").write_text("molecules: [h2.xyz]\nfunctionals: hf\nbases: STO-3G\nmodel_mae: {a: 0.1}\n")
    settings = load_label_noise(tmp_path / "s.yaml")
    assert settings.molecules == (str(tmp_path / "h2.xyz"),) and settings.model_mae == {"a": 0.1}
    (molecule,) = read_molecules(settings.molecules)
    assert molecule.title == "h2 (H2)" and molecule.published == {}
    assert orbitals(molecule, "hf", "STO-3G").functions == 2


def test_the_protocol_that_ships(repository):
    settings = load_label_noise(repository / "protocols" / "label-noise.yaml")
    assert (QM9_FUNCTIONAL in settings.functionals) and (QM9_BASIS in settings.bases) and "hf" in settings.functionals
    assert [one.title for one in read_molecules(settings.molecules)] == ["gdb1 (CH4)", "gdb2 (H3N)", "gdb3 (H2O)"]
    assert load_label_noise("label-noise.yaml") == settings.model_copy(update={"output": settings.output})


def test_without_pyscf(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pyscf" else find(name, *rest))
    (tmp_path / "s.yaml").write_text(SMALL)
    with pytest.raises(GeomGNNError, match=r'needs? PySCF.*pip install "openmm-geomgnn\[labels\]"'):
        load_label_noise(tmp_path / "s.yaml")
