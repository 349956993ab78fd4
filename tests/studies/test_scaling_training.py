"""A small sweep through TorchMD-Net's trainer: killed and resumed, repeated by hand, with a network that cannot be built."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from trainer_runs import torchmd_train

from openmm_geomgnn.cli.scaling import NUMBERS, REPORT, TABLE, run_scaling
from openmm_geomgnn.cli.settings.yaml_files import load_scaling
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.training.folder import (
    CONFIGURATION,
    RESULT,
    TRAINING,
    load_result,
    losses,
    may_run_again,
    reason_in,
    stop_all,
    train_network,
)
from openmm_geomgnn.studies.training.parallel import check_parallel, train_networks

pytestmark = pytest.mark.slow
SWEEP = """
base: base.yaml
output: sweep
axes: {width: [8, 10], data: [60, 120]}
training: {train_size: 120}
threads: 1
"""
BASE = {
    "seed": 3, "ngpus": 1, "num_workers": 0, "dataset": "Denoising", "dataset_root": None, "val_size": 30, "test_size": 10,
    "dataset_arg": {"dataset": "Conformers", "sigma": 0.2}, "model": "visnet", "output_model": "Noise",
    "embedding_dimension": 8, "num_layers": 1, "num_heads": 4, "num_rbf": 8, "cutoff_upper": 4.0, "max_z": 100,
    "num_epochs": 2, "batch_size": 20, "inference_batch_size": 30, "lr": 1e-3, "precision": 32,
}  # fmt: skip
FULL, BAD, HALF = (f"layers1-width{width}-cutoff4-data{number}-seed1" for width, number in ((8, 120), (10, 120), (8, 60)))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a sweep whose process was killed while its second network was trained; then it went on."""
    folder = tmp_path_factory.mktemp("scaling")
    (folder / "base.yaml").write_text(yaml.safe_dump(BASE))
    (folder / "s.yaml").write_text(SWEEP)
    script = Path(sys.executable).parent / "geomgnn"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen([script, "scaling", "s.yaml"], cwd=folder, env=environment)
    networks = folder / "sweep" / "networks"
    try:
        waited = time.monotonic()
        while not ((networks / FULL / RESULT).exists() and (networks / HALF / "log.txt").exists()):
            assert process.poll() is None and time.monotonic() - waited < 240
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = (networks / FULL / RESULT).read_bytes()
    assert not (networks / HALF / RESULT).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        numbers = run_scaling(load_scaling("s.yaml"))
        assert (networks / FULL / RESULT).read_bytes() == first
        table = (folder / "sweep" / TABLE).read_bytes()
        began = time.monotonic()
        run_scaling(load_scaling("s.yaml"))  # everything is there
        assert time.monotonic() - began < 20 and (folder / "sweep" / TABLE).read_bytes() == table
    return folder / "sweep", numbers


def test_the_table_after_a_kill(killed):
    folder, numbers = killed
    rows = {row["network"]: row for row in numbers["networks"]}
    assert list(rows) == [FULL, BAD, HALF]
    assert [rows[name]["status"] for name in rows] == ["trained", "failed", "trained"]
    assert rows[FULL]["axes"] == {"width": 8, "data": 120} and rows[HALF]["axes"] == {"data": 60}
    assert "evenly divisible" in rows[BAD]["reason"] and rows[BAD]["best_loss"] is None
    for name, samples in ((FULL, 240), (HALF, 120)):
        row = rows[name]
        assert 0.5 < row["best_loss"] <= row["first_epoch_loss"] < 1.2 and row["epochs"] == 2
        assert row["samples"] == samples and row["parameters"] > 1000 and row["wall_seconds"] > 1
        # the trainer of the killed sweep went on to its end, and was waited for: no epoch was done twice
        assert len(list((folder / "networks" / name / TRAINING).glob("metrics*.csv"))) == 1
    with open(folder / TABLE, newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["network"] for row in written] == list(rows) and written[0]["axes"] == "width=8 data=120"
    report = (folder / REPORT).read_text()
    assert "evenly divisible" in report and "A law takes 3 sizes or more" in report and "data:image/png" in report
    assert json.loads((folder / NUMBERS).read_text())["laws"][0]["laws"] == []


@pytest.mark.parametrize("name", [FULL, HALF])
def test_a_network_is_repeated_by_hand(killed, tmp_path, name):
    folder, numbers = killed
    torchmd_train("--conf", folder / "networks" / name / CONFIGURATION, "--log-dir", tmp_path / TRAINING)
    (row,) = (row for row in numbers["networks"] if row["network"] == name)
    found = losses(tmp_path)
    assert (found[0], min(found.values())) == (row["first_epoch_loss"], row["best_loss"])


def test_a_training_goes_on_from_its_checkpoint(killed, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    settings = yaml.safe_load((killed[0] / "networks" / HALF / CONFIGURATION).read_text())
    settings |= {"log_dir": str(tmp_path / TRAINING), "num_epochs": 1}
    (tmp_path / CONFIGURATION).write_text(yaml.safe_dump(settings))
    torchmd_train("--conf", tmp_path / CONFIGURATION)
    first = losses(tmp_path)
    (tmp_path / TRAINING / "metrics.csv").write_text(
        "".join((tmp_path / TRAINING / "metrics.csv").read_text().splitlines(True)[:-1])  # as if killed before its test
    )
    (tmp_path / CONFIGURATION).write_text(yaml.safe_dump({**settings, "num_epochs": 3}))
    answer = train_network(str(tmp_path), 1)
    assert answer["status"] == "trained" and answer["epochs"] == 3 and not answer["converged"]
    assert list(first) == [0] and answer["first_epoch_loss"] == first[0]
    now = (tmp_path / TRAINING / "metrics.csv").read_text()
    assert len(list((tmp_path / TRAINING).glob("metrics*.csv"))) == 2 and "\n0.0," not in now
    assert train_network(str(tmp_path), 1) == answer


def test_a_sweep_that_is_stopped_leaves_its_trainings_open(killed, tmp_path):
    (tmp_path / CONFIGURATION).write_text((killed[0] / "networks" / HALF / CONFIGURATION).read_text())
    answers = []
    thread = threading.Thread(target=lambda: answers.append(train_network(str(tmp_path), 1)))
    thread.start()
    while not (tmp_path / "log.txt").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    try:
        stop_all()
        thread.join(30)
        assert answers[0]["status"] == "ended" and load_result(tmp_path) is None
    finally:
        may_run_again()


@pytest.mark.parametrize("workers", [1, 3])
def test_side_by_side(killed, tmp_path, workers):
    """What has ended is only read."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, name in zip(folders, (FULL, HALF, FULL), strict=True):
        shutil.copytree(killed[0] / "networks" / name, folder)
    found = dict(train_networks(folders, workers, 1))
    assert found == {folder: load_result(folder) for folder in folders}


def test_no_scheduler_answers(tmp_path):
    with pytest.raises(GeomGNNError, match="No Dask scheduler answers at 'nowhere'"):
        list(train_networks([tmp_path], 1, 1, "nowhere"))


def test_what_training_side_by_side_needs_is_asked_for_before_any_work(killed, tmp_path, monkeypatch):
    """The study is complete: nothing but this check would fail."""
    monkeypatch.chdir(killed[0].parent)
    with pytest.raises(GeomGNNError, match="No Dask scheduler answers at 'nowhere'"):
        run_scaling(load_scaling("s.yaml", {"scheduler": "nowhere", "output": str(tmp_path / "new")}))
    monkeypatch.setitem(sys.modules, "distributed", None)
    check_parallel(1)
    with pytest.raises(GeomGNNError, match=r"takes Dask, which is not installed: pip install .*workers: 1"):
        run_scaling(load_scaling("s.yaml", {"workers": 2, "output": str(tmp_path / "new")}))
    assert not (tmp_path / "new").exists()


def test_networks_of_other_settings_are_refused(killed, monkeypatch):
    monkeypatch.chdir(killed[0].parent)
    with pytest.raises(GeomGNNError, match=r"is of a sweep with other settings \(lr\)"):
        run_scaling(load_scaling("s.yaml", {"training.lr": 0.01}))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("start\nTraceback:\n  File x\nValueError: sigma is 0\nwandb: done\n", "ValueError: sigma is 0"),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
        ("a\nb\nc\nd\n", "b c d"),
        ("", "it ended with code 3 and printed nothing"),
    ],
)
def test_why_a_trainer_failed(log, reason):
    assert reason_in(log, 3) == reason
