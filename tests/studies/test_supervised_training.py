"""A small study through TorchMD-Net's trainer: its splits, its error on test molecules, and a network repeated by hand."""

import csv
import json

import numpy as np
import pytest
import yaml
from trainer_runs import torchmd_train, write_small_encoder

from openmm_geomgnn.cli.settings.yaml_files import load_supervised
from openmm_geomgnn.cli.supervised import ERRORS, FINGERPRINTS, NUMBERS, REPORT, TABLE, check_supervised, run_supervised
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.training.folder import CONFIGURATION, TRAINING, losses

pytestmark = pytest.mark.slow
STUDY = """
encoders: small.safetensors
targets: {U0: 60}
ways: [fine-tuned]
splits: [scaffold]
held_out: {val: 20, test: 25}
molecules: 400
epochs: 2
training: {batch_size: 20, inference_batch_size: 30, lr: 1.0e-3}
threads: 1
"""
NAME = "U0-scaffold-60-small-fine-tuned-seed1"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a finished study, and its numbers."""
    folder = tmp_path_factory.mktemp("supervised")
    write_small_encoder(folder / "small.safetensors")
    (folder / "s.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        numbers = run_supervised(load_supervised("s.yaml"))
    return folder, numbers


def test_what_a_study_leaves(study):
    folder, numbers = study
    output = folder / "runs" / "s"
    (row,), (error,) = numbers["networks"], numbers["errors"]
    assert row["network"] == NAME and row["status"] == "trained" and row["epochs"] == 2 and row["unit"] == "meV"
    assert error["mean"] == row["mae"] and error["spread"] is None and error["seeds"] == 1
    for name in (TABLE, ERRORS, NUMBERS, REPORT):
        assert (output / name).stat().st_size > 100
    (entry,) = json.loads((output / "splits" / FINGERPRINTS).read_text()).values()
    assert entry["train"] == 60 and len(entry["sha256"]) == 64
    # the trainer's own test says the same: one batch holds all test molecules
    with open(output / "networks" / NAME / TRAINING / "metrics.csv", newline="") as file:
        (tested,) = (row["test_total_l1_loss"] for row in csv.DictReader(file) if row["test_total_l1_loss"])
    assert 1000 * float(tested) == pytest.approx(row["mae"], rel=1e-3)
    with np.load(output / "networks" / NAME / "test.npz") as file:
        assert (file["label"] < -1000).all() and np.abs(file["label"] - file["prediction"]).max() < 20  # eV


def test_a_network_is_repeated_by_hand(study, tmp_path):
    configuration = study[0] / "runs" / "s" / "networks" / NAME / CONFIGURATION
    torchmd_train("--conf", configuration, "--log-dir", tmp_path / TRAINING)
    assert losses(tmp_path) == losses(configuration.parent)


def test_what_is_done_is_not_done_again(study, monkeypatch):
    monkeypatch.chdir(study[0])
    result = study[0] / "runs" / "s" / "networks" / NAME / "result.json"
    before = result.stat().st_mtime_ns
    assert run_supervised(load_supervised("s.yaml")) == study[1] and result.stat().st_mtime_ns == before
    with pytest.raises(GeomGNNError, match=r"is of a study with other settings \(lr\)"):
        run_supervised(load_supervised("s.yaml", {"training.lr": 0.01}))


def test_check_says_how_long_it_takes(study, monkeypatch, capsys):
    monkeypatch.chdir(study[0])
    check_supervised(load_supervised("s.yaml", {"output": "other", "targets": {"U0": 60, "mu": 60}}))
    said = capsys.readouterr().out
    assert "2 networks; at most about" in said and "There is no store yet" in said and not (study[0] / "other").exists()
    assert yaml.safe_load(STUDY)["molecules"] == 400
