"""`geomgnn fit` to biased simulations: folders of runs, files with a COLVAR, among unbiased trajectories."""

import shutil

import mdtraj
import numpy as np
import pytest

from openmm_geomgnn.cli.biased_runs import read_biased
from openmm_geomgnn.cli.fit import run_fit
from openmm_geomgnn.cli.settings.yaml_files import load_fit
from openmm_geomgnn.cv.reweighting import pairs_apart
from openmm_geomgnn.cv.verdict import ORDER_ONLY
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import rescaled_time_pairs
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.colvar import ColvarWriter, read_colvar, split_walkers

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


def mixed(tmp_path, monkeypatch, run, **more):
    """The CV of the unbiased trajectories of a run, with frames 0.2 ps apart, and of the run itself."""
    trajectories = f"[{run}/unbiased/*.dcd, {{run: {run}, discard: 3 ps}}]"
    return fitted(tmp_path, monkeypatch, run, trajectories, frame_interval="0.2 ps", **more)


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
    cv = mixed(tmp_path, monkeypatch, run, reweighting="static")
    facts = cv.training_information
    assert facts["biased"] == [False, False, True, True] and facts["reweighting"] == "static"
    assert facts["timescales_ps"] == [None]
    assert facts["timescale_notes"][0] == ORDER_ONLY or "unresolved" in facts["timescale_notes"][0]


@pytest.mark.parametrize(
    ("trajectories", "more", "message"),
    [
        ("[{run: nowhere}]", {}, "is not a folder of `geomgnn run`"),
        ("[{run: RUN, colvar: RUN/COLVAR}]", {}, "colvar is known for a run"),
        ("[{run: RUN, temperature: 350 K}]", {}, "temperature is known for a run"),
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


def pieces(run, tmp_path):
    """The first walker of a run, without the column of walkers, as anybody's files."""
    trajectory = mdtraj.load(str(run / "trajectory.0.dcd"), top=str(run / "topology.pdb"))
    rows = split_walkers(read_colvar(run / "COLVAR"))[0]
    del rows["walker"]
    write(tmp_path / "COLVAR", rows)
    trajectory.time = INTERVAL * np.arange(1, len(trajectory) + 1)
    return trajectory, rows


def write(path, rows):
    with ColvarWriter(path, list(rows)) as colvar:
        colvar.write(rows)


def read_files(run, tmp_path, entry):
    entries = loaded(tmp_path, f"[{{{entry}, colvar: COLVAR, bias: opes.bias}}]", topology=run / "topology.pdb").biased
    return read_biased(entries, as_topology(run / "topology.pdb"))


def test_pieces_of_a_walker_get_their_own_rows(run, tmp_path):
    trajectory, rows = pieces(run, tmp_path)
    for name, part in (("a", trajectory[:20]), ("b", trajectory[20:])):
        part.save_xtc(str(tmp_path / f"{name}.xtc"))
        part.save_dcd(str(tmp_path / f"{name}.dcd"))
    found = read_files(run, tmp_path, "files: [a.xtc, b.xtc], discard: 0 ps")
    together = np.concatenate([one.bias for one in found])
    expected = rows["opes.bias"][1::2]
    np.testing.assert_allclose(together - together[0], expected - expected[0], atol=1e-9)
    with pytest.raises(GeomGNNError, match="not known which rows are its own"):
        read_files(run, tmp_path, f"files: [a.dcd, b.dcd], frame_interval: {INTERVAL} ps, discard: 0 ps")


def test_rows_written_twice_and_frames_left_out_are_errors(run, tmp_path):
    trajectory, rows = pieces(run, tmp_path)
    gap = trajectory[np.r_[0:20, 30:50]]
    gap.save_xtc(str(tmp_path / "gap.xtc"))
    with pytest.raises(GeomGNNError, match="not evenly spaced"):
        read_files(run, tmp_path, "files: [gap.xtc], discard: 0 ps")
    trajectory.save_xtc(str(tmp_path / "a.xtc"))
    again = {name: np.concatenate([values[:60], values[50:]]) for name, values in rows.items()}
    write(tmp_path / "COLVAR", again)
    with pytest.raises(GeomGNNError, match="written twice"):
        read_files(run, tmp_path, "files: [a.xtc], discard: 0 ps")


def test_plumeds_colvar_with_several_biases_in_kcal(run, tmp_path):
    trajectory, rows = pieces(run, tmp_path)
    trajectory.save_xtc(str(tmp_path / "a.xtc"))
    text = ["#! FIELDS time phi opes.bias walls.bias", "#! SET min_phi -pi", "#! SET max_phi pi"]
    energies = rows["opes.bias"] / 4.184
    text += [f" {t:.6f} 0.1 {v + 1:.9f} {-1 + 0.01 * t:.9f}" for t, v in zip(rows["time"], energies, strict=True)]
    (tmp_path / "COLVAR").write_text("\n".join(text) + "\n")
    entry = "files: a.xtc, colvar: COLVAR, bias: [opes.bias, walls.bias], energy_unit: kcal/mol, discard: 0 ps"
    entries = loaded(tmp_path, f"[{{{entry}}}]", topology=run / "topology.pdb").biased
    (found,) = read_biased(entries, as_topology(run / "topology.pdb"))
    expected = (rows["opes.bias"] + 4.184 * 0.01 * rows["time"])[1::2]
    np.testing.assert_allclose(found.bias - found.bias[0], expected - expected[0], atol=1e-6)


def test_lag_that_is_no_whole_number_of_biased_frames(run, tmp_path, monkeypatch):
    cv = mixed(tmp_path, monkeypatch, run, lag="1 ps")  # 4.17 frames of the biased run
    assert cv.training_information["biased"] == [False, False, True, True]


def test_pairs_between_whole_numbers_of_frames_are_a_lag_apart():
    n, interval, lag = 300, 0.99, 5.0
    first, second, weights = pairs_apart(np.ones(n), interval, lag)
    assert np.average(interval * (second - first), weights=weights) == pytest.approx(lag, abs=0.01)
    (twin,) = rescaled_time_pairs([np.zeros(n)], 2.5, interval, lag)
    np.testing.assert_array_equal(first, twin.first)
    np.testing.assert_array_equal(second, twin.second)
    np.testing.assert_allclose(weights, twin.weights, atol=1e-9)
    whole = pairs_apart(np.ones(n), 1.0, lag)
    assert len(whole.first) == n - 5 and set(whole.second - whole.first) == {5}
    with pytest.raises(GeomGNNError, match="shorter than"):
        pairs_apart(np.ones(n), 7.0, lag)


def test_the_cv_of_a_run_is_not_replaced(run, tmp_path, monkeypatch):
    with pytest.raises(GeomGNNError, match="must stay as it is"):
        fitted(tmp_path, monkeypatch, run, f"[{{run: {run}}}]", output=run / "cv.safetensors")
