"""A small study of energies and forces through TorchMD-Net's trainer, and a network repeated by hand."""

import csv

import numpy as np
import pytest
from ase.io import write
from labelled_frames import frames
from trainer_runs import torchmd_train, write_small_encoder

from openmm_geomgnn.cli import forces
from openmm_geomgnn.cli.forces import ERRORS, FIGURE, NUMBERS, REPORT, TABLE, check_forces, run_forces
from openmm_geomgnn.cli.settings.yaml_files import load_forces
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.forces import labelling
from openmm_geomgnn.studies.training.folder import CONFIGURATION, TRAINING, losses

pytestmark = pytest.mark.slow
STUDY = """
frames: {cold: cold.xyz, hot: hot.xyz}
encoders: small.safetensors
ways: [fine-tuned]
splits: hotter
held_out: {val: 0.2, test: 0.2}
sizes: 20
epochs: 2
training: {batch_size: 10, inference_batch_size: 30, lr: 1.0e-3}
threads: 1
"""
NAME = "hotter-20-small-fine-tuned-seed1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a finished study, and its numbers."""
    folder = tmp_path_factory.mktemp("forces")
    write_small_encoder(folder / "small.safetensors")
    write(folder / "cold.xyz", frames(40, seed=1, scale=0.03))
    write(folder / "hot.xyz", frames(20, seed=2, scale=0.06))
    (folder / "s.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        numbers = run_forces(load_forces("s.yaml"))
    return folder, numbers


def test_what_a_study_leaves(study):
    folder, numbers = study
    output = folder / "runs" / "s"
    (row,) = numbers["networks"]
    assert row["network"] == NAME and row["status"] == "trained" and row["epochs"] == 2
    assert [(one["tested"], one["kind"]) for one in numbers["errors"]] == [
        (tested, kind) for tested in ("cold", "hot") for kind in ("energy", "relative_energy", "energy_per_atom", "forces")
    ]
    assert row["energy of hot"] == pytest.approx(4 * row["energy_per_atom of hot"])
    for name in (TABLE, ERRORS, NUMBERS, REPORT, FIGURE):
        assert (output / name).stat().st_size > 100
    with np.load(output / "networks" / NAME / "test.npz") as file:
        test = dict(file)
    assert test["index"].tolist() == [*range(32, 40), *range(56, 60)]
    wrong = 1000 * np.abs(test["predicted_forces"] - test["forces"]).reshape(12, -1).mean(axis=1)
    assert row["forces of hot"] == pytest.approx(wrong[8:].mean()) and row["forces of cold"] == pytest.approx(
        wrong[:8].mean()
    )
    # the trainer's own test says the same: one batch holds all test frames
    with open(output / "networks" / NAME / TRAINING / "metrics.csv", newline="") as file:
        (tested,) = (row for row in csv.DictReader(file) if row["test_total_l1_loss"])
    assert 1000 * float(tested["test_neg_dy_l1_loss"]) == pytest.approx(wrong.mean(), rel=1e-3)
    energies = np.abs(test["predicted_energy"] - test["energy"]).mean()
    assert float(tested["test_y_l1_loss"]) == pytest.approx(energies, rel=1e-3) and energies < 5  # eV


def test_a_network_is_repeated_by_hand(study, tmp_path):
    configuration = study[0] / "runs" / "s" / "networks" / NAME / CONFIGURATION
    torchmd_train("--conf", configuration, "--log-dir", tmp_path / TRAINING)
    assert losses(tmp_path) == losses(configuration.parent)


def test_what_is_done_is_not_done_again(study, monkeypatch):
    monkeypatch.chdir(study[0])
    result = study[0] / "runs" / "s" / "networks" / NAME / "result.json"
    before = result.stat().st_mtime_ns
    assert run_forces(load_forces("s.yaml")) == study[1] and result.stat().st_mtime_ns == before
    with pytest.raises(GeomGNNError, match="leaves 24"):
        run_forces(load_forces("s.yaml", {"sizes": 25}))
    with pytest.raises(GeomGNNError, match="holds other frames"):
        run_forces(load_forces("s.yaml", {"frames": {"cold": "cold.xyz"}, "splits": "temporal"}))


def test_nothing_is_labelled_where_too_much_is_asked_for(study, monkeypatch):
    monkeypatch.chdir(study[0])
    monkeypatch.setattr(labelling, "prepare", lambda *given: pytest.fail("it was labelled"))
    with pytest.raises(GeomGNNError, match="601 frames are to be trained on, but the hotter split leaves 600"):
        run_forces(load_forces("s.yaml", {"frames": None, "molecule": "O", "sizes": 601, "output": "other"}))
    assert not (study[0] / "other").exists()


def test_check_says_how_long_it_takes(study, monkeypatch, capsys):
    pytest.importorskip("tblite")
    monkeypatch.chdir(study[0])
    check_forces(
        load_forces("s.yaml", {"output": "other", "frames": None, "molecule": "O", "splits": None, "held_out": None})
    )
    said = capsys.readouterr().out
    assert "3 trajectories of 22000 steps" in said and "2 networks; at most about" in said
    check_forces(load_forces("s.yaml", {"output": "other"}))
    assert "hot: 20 frames" in capsys.readouterr().out and not (study[0] / "other").exists()
    assert forces.FORMAT == "openmm-geomgnn forces"
