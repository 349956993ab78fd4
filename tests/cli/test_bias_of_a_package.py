"""A bias of another package by its name in a protocol: what is refused, and a run with it."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import toy_bias
from distributions import install
from finished_run import COMMAND
from protocol_texts import MINIMAL
from toy_bias import ToyBias

from openmm_geomgnn.cli.settings.fields import OUR_BIASES
from openmm_geomgnn.cli.settings.yaml_files import dump
from openmm_geomgnn.plugins import GROUPS
from openmm_geomgnn.sampling.bias import BIASES
from openmm_geomgnn.sampling.colvar import read_colvar

TOY = MINIMAL + "bias: {method: toy, pace: 3 ps, settings: {height: 2.0}}\nrun: {every: 1}\n"
RUN = """
output: runs/toy
system: {{structures: ala2-c7eq.pdb, platform: Reference}}
cv: {{file: "{folder}/cv.safetensors"}}
bias: {{method: toy, pace: 0.12, settings: {{height: 2.0, width: 0.2}}}}
run: {{length: 4.8, walkers: 1, colvar_interval: 0.024, frame_interval: 0.12, checkpoint_interval: 2.4, accept: not-usable}}
unbiased: {{comparison_length: 2}}
"""


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder with an installed package that brings the bias `toy`."""
    folder = tmp_path / "packages"
    install(folder, "toy-biases", {GROUPS["bias"]: {"toy": "toy_bias:ToyBias"}})
    shutil.copy(toy_bias.__file__, folder)
    monkeypatch.syspath_prepend(folder)
    return folder


def test_ours_are_known_where_settings_are_read():
    """The names are written out there, so that nothing heavy is imported."""
    assert list(OUR_BIASES) == list(BIASES)


def test_settings(load_text, packages, shipped_files):
    protocol = load_text(TOY)
    assert protocol.make_bias() == ToyBias(height=2.0, pace=protocol.schedule.pace) and protocol.schedule.pace > 500
    assert load_text(dump(protocol)).bias == protocol.bias


def test_unknown_names(refusal, shipped_files):
    assert "method is 'toy'" in refusal(TOY) and "'opes'" in refusal(TOY)  # where the package is not installed


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("height: 2.0", "hight: 2.0", "settings do not make a bias toy: .*unexpected keyword argument 'hight'"),
        ("pace: 3 ps", "barrier: 30", "barrier is a setting of opes, but method is toy. Give toy its own under settings"),
        ("method: toy", "method: opes", "settings is for the bias of another package, but method is opes"),
        ("method: toy", "method: tou", "method is 'tou'.*Did you mean 'toy'"),
    ],
)
def test_refusals(before, after, message, refusal, packages, shipped_files):
    assert re.search(message, refusal(TOY.replace(before, after)))


@pytest.mark.slow
def test_a_run(finished, packages, tmp_path):
    """On a CV that exists: it deposits, and its report has a free energy from its weights."""
    _, folder = finished
    (tmp_path / "toy.yaml").write_text(RUN.format(folder=folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    command = [*COMMAND, "run", "toy.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 3), done.stderr  # 3: too short a run to have converged, by the states found in it
    assert "Bias: ToyBias(height=2.0, width=0.2" in done.stdout
    colvar = read_colvar(tmp_path / "runs/toy/COLVAR")
    assert colvar["toybias.nker"][-1] >= 39 and colvar["toybias.bias"].max() > 2.0
    summary = json.loads((tmp_path / "runs/toy/summary.json").read_text())
    assert summary["biased_ns"] == pytest.approx(0.0048)
    assert (tmp_path / "runs/toy/report.html").is_file() and not (Path(tmp_path) / "runs/toy/KERNELS").exists()
