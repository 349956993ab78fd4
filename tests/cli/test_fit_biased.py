"""`geomgnn fit` to biased simulations: folders of runs, files with a COLVAR, among unbiased trajectories."""

import shutil

import numpy as np
import pytest

from openmm_geomgnn.cli.biased_runs import read_biased
from openmm_geomgnn.cli.fit import run_fit
from openmm_geomgnn.cli.settings.yaml_files import load_fit
from openmm_geomgnn.cv.verdict import ORDER_ONLY
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.colvar import read_colvar

pytestmark = pytest.mark.slow
INTERVAL = 0.24  # ps between frames of the finished run


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("biased") / "tiny"
    shutil.copytree(finished[1], folder)
    return folder


def loaded(tmp_path, trajectories, **more):
    text = [
        f"topology: {more.pop('topology')}",
        f"trajectories: {trajectories}",
        f"cv: {{lag: {more.pop('lag', '1.2 ps')}, pca: 10}}",
    ]
    text += [f"{name}: {value}" for name, value in more.items()]
    path = tmp_path / "fit.yaml"
    path.write_text("\n".join(text))
    return load_fit(path)


def fitted(tmp_path, monkeypatch, run, trajectories, **more):
    monkeypatch.chdir(tmp_path)
    return run_fit(loaded(tmp_path, trajectories, topology=run / "topology.pdb", **more))


def test_bias_of_every_frame_is_that_of_its_row(run, tmp_path):
    entries = loaded(tmp_path, f"[{{run: {run}, discard: 0 ps}}]", topology=run / "topology.pdb").biased
    walkers = read_biased(entries, as_topology(run / "topology.pdb"))
    colvar = read_colvar(run / "COLVAR")
    assert [len(one.trajectory) for one in walkers] == [50, 50]
    for number, one in enumerate(walkers):
        rows = colvar["opes.bias"][colvar["walker"] == number][1::2]  # a frame for every second row
        np.testing.assert_allclose(one.bias - one.bias[0], rows - rows[0], atol=1e-9)
        assert one.frame_interval == pytest.approx(INTERVAL) and one.temperature == 300
    together = np.concatenate([one.bias for one in walkers])
    assert np.exp(together / (0.00831446 * 300)).mean() == pytest.approx(1.0, rel=1e-4)


def test_a_run_and_its_files_give_the_same_cv(run, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    from_run = fitted(tmp_path / "a", monkeypatch, run, f"[{{run: {run}, discard: 3 ps}}]", lag="0.48 ps")
    files = f"[{run}/trajectory.0.dcd, {run}/trajectory.1.dcd]"
    entry = f"{{files: {files}, colvar: {run}/COLVAR, bias: opes.bias, frame_interval: {INTERVAL} ps, discard: 3 ps}}"
    from_files = fitted(tmp_path / "b", monkeypatch, run, f"[{entry}]", lag="0.48 ps")
    np.testing.assert_allclose(from_run.projection, from_files.projection, rtol=1e-4, atol=1e-5)
    assert from_run.training_information["biased"] == [True, True]
    assert from_run.training_information["reweighting"] == "none"


def test_mixed_with_unbiased_frames_at_another_interval(run, tmp_path, monkeypatch):
    cv = fitted(
        tmp_path,
        monkeypatch,
        run,
        f"[{run}/unbiased/*.dcd, {{run: {run}, discard: 3 ps}}]",
        frame_interval="0.2 ps",
        reweighting="static",
    )
    facts = cv.training_information
    assert facts["biased"] == [False, False, True, True] and facts["reweighting"] == "static"
    assert facts["timescales_ps"] == [None]
    assert facts["timescale_notes"][0] == ORDER_ONLY or "unresolved" in facts["timescale_notes"][0]


@pytest.mark.parametrize(
    ("trajectories", "more", "message"),
    [
        ("[{run: nowhere}]", {}, "is not a folder of `geomgnn run`"),
        ("[{run: RUN, colvar: RUN/COLVAR}]", {}, "colvar is known for a run"),
        ("[{files: [RUN/trajectory.0.dcd]}]", {}, "colvar is missing"),
        ("[{run: RUN}]", {"reweighting": "girsanov"}, "have no common density"),
        ("[{run: RUN}]", {"stride": 2}, "stride is not for biased"),
    ],
)
def test_settings_that_make_no_sense(run, tmp_path, trajectories, more, message):
    with pytest.raises(GeomGNNError, match=message):
        loaded(tmp_path, trajectories.replace("RUN", str(run)), topology=run / "topology.pdb", **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("bias: opes.bais", "opes.bais"),
        ("start: 900 ps", "they do not belong together"),
        ("frame_interval: 0.25 ps", "no COLVAR row at their time"),
        ("discard: 99 ps", "Discard less"),
    ],
)
def test_files_that_do_not_fit(run, tmp_path, monkeypatch, change, message):
    entry = {
        "files": f"[{run}/trajectory.0.dcd, {run}/trajectory.1.dcd]",
        "colvar": f"{run}/COLVAR",
        "bias": "opes.bias",
        "frame_interval": f"{INTERVAL} ps",
        "discard": "0 ps",
    }
    name, value = change.split(": ")
    entry[name] = value
    text = ", ".join(f"{key}: {value}" for key, value in entry.items())
    with pytest.raises(GeomGNNError, match=message):
        fitted(tmp_path, monkeypatch, run, f"[{{{text}}}]")
