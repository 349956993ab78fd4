"""Energies and forces: frames and what is left out of them, splits in time, tables of errors, settings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import read, write
from labelled_frames import OFFSET, frames

from openmm_geomgnn.cli.settings.yaml_files import load_forces
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.forces.evaluate import Errors, errors
from openmm_geomgnn.studies.forces.figures import error_figure
from openmm_geomgnn.studies.forces.frames import FrameSet, Labels, gather, given_parts, temporal_parts
from openmm_geomgnn.studies.forces.plan import Network, make_splits
from openmm_geomgnn.studies.forces.table import Row, summarise
from openmm_geomgnn.studies.training.folder import Result
from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ


def test_frames_of_all_sets_in_one_file(tmp_path):
    cold, hot = frames(5, seed=1, scale=0.02), frames(4, seed=2, scale=0.05)
    hot[1].positions[2] += [0.9, 0, -0.5]  # a hydrogen far away
    hot[2].positions[2] = [0.3, 0.0, 2.1]  # and one at the oxygen
    write(tmp_path / "cold.xyz", cold)
    write(tmp_path / "hot.xyz", hot)
    sets = [FrameSet("cold", (tmp_path / "cold.xyz",)), FrameSet("hot", (tmp_path / "hot.xyz",))]
    first, second = gather(sets, Labels(), tmp_path / "frames.xyz")
    assert (first.frames, first.apart, first.other) == (5, 0, 0)
    assert (second.frames, second.apart, second.other) == (3, 1, 1)
    assert first.energy == pytest.approx(
        1000 * np.abs(np.diff(np.sort([one.get_potential_energy() for one in cold]))) @ [0.2, 0.4, 0.4, 0.2]
    )
    assert first.forces == pytest.approx(1000 * np.mean([np.abs(one.get_forces()) for one in cold]), rel=1e-4)
    assert "5 frames" in first.describe() and "bound otherwise" not in first.describe()
    assert "1 more were left out, in which the molecule fell into parts" in second.describe()
    dataset = ExtendedXYZ(tmp_path / "frames.xyz")
    assert len(dataset) == 8
    assert float(dataset[7].y) == pytest.approx(hot[3].get_potential_energy(), abs=1e-6)
    assert [one.info["set"] for one in read(tmp_path / "frames.xyz", ":")] == 5 * ["cold"] + 3 * ["hot"]
    # the same again, and something else
    before = (tmp_path / "frames.xyz").stat().st_mtime_ns
    gather(sets, Labels(), tmp_path / "frames.xyz")
    with pytest.raises(GeomGNNError, match="holds other frames: the data have changed"):
        gather(sets[:1], Labels(), tmp_path / "frames.xyz")
    assert before and len(list(tmp_path.iterdir())) == 3


def test_units_of_files_and_what_is_wrong_in_them(tmp_path):
    made = frames(3, scale=0.02)
    for one in made:
        one.info["E"], one.arrays["F"] = one.get_potential_energy() / units.Hartree, one.get_forces() / units.Hartree
        one.calc = None
    write(tmp_path / "a.xyz", made)
    sets = [FrameSet("a", (tmp_path / "a.xyz",))]
    gather(sets, Labels("E", "F", "Hartree"), tmp_path / "frames.xyz")
    assert read(tmp_path / "frames.xyz", "0").get_potential_energy() == pytest.approx(OFFSET, abs=10)
    assert np.allclose(read(tmp_path / "frames.xyz", "2").get_forces(), frames(3, scale=0.02)[2].get_forces(), atol=1e-6)
    assert Labels(unit="kcal/mol").factor() == pytest.approx(0.0433641) and Labels(unit="kJ/mol").factor() < 0.011
    with pytest.raises(GeomGNNError, match="frame 1 of .* has no energy called 'energy'"):
        gather(sets, Labels(), tmp_path / "other.xyz")


def test_parts_follow_one_another_in_time():
    parts = temporal_parts({"300 K": 20, "900 K": 10}, 0.1, 0.3)
    assert parts["300 K"]["train"].tolist() == list(range(12)) and parts["300 K"]["val"].tolist() == [12, 13]
    assert parts["300 K"]["test"].tolist() == list(range(14, 20)) and parts["900 K"]["test"].tolist() == [27, 28, 29]
    with pytest.raises(GeomGNNError, match="b has 3 frames, which leave none for val"):
        temporal_parts({"a": 20, "b": 3}, 0.1, 0.3)
    given = given_parts({"train": 5, "val": 2, "test": 3})
    assert (
        list(given) == ["test"] and given["test"]["val"].tolist() == [5, 6] and given["test"]["test"].tolist() == [7, 8, 9]
    )


def test_hotter_trains_on_the_first_set_and_is_tested_on_all():
    parts = temporal_parts({"300 K": 20, "900 K": 20}, 0.1, 0.3)
    networks = [
        Network("", split, size, "", "", seed, {}) for split in ("temporal", "hotter") for size in (4, 8) for seed in (1, 2)
    ]
    splits = make_splits(networks, parts)
    assert len(splits) == 8
    assert splits["hotter-8-seed1"]["idx_train"].max() < 12 <= splits["temporal-8-seed1"]["idx_train"].max()
    assert splits["hotter-8-seed1"]["idx_val"].tolist() == [12, 13]
    assert splits["temporal-8-seed1"]["idx_val"].tolist() == [12, 13, 32, 33]
    for arrays in splits.values():
        assert arrays["idx_test"].tolist() == [*range(14, 20), *range(34, 40)]
        assert not set(arrays["idx_train"]) & {*arrays["idx_val"], *arrays["idx_test"]}
    assert set(splits["hotter-4-seed1"]["idx_train"]) < set(splits["hotter-8-seed1"]["idx_train"])
    assert set(splits["hotter-8-seed1"]["idx_train"]) != set(splits["hotter-8-seed2"]["idx_train"])
    with pytest.raises(GeomGNNError, match="13 frames are to be trained on, but the hotter split leaves 12"):
        make_splits([Network("", "hotter", 13, "", "", 1, {})], parts)


def test_errors_of_frames_of_different_sizes():
    known = {
        "atoms": np.array([2, 3, 1]),
        "energy": np.zeros(3),
        "predicted_energy": np.array([0.001, -0.006, 9.0]),
        "forces": np.zeros((6, 3)),
        "predicted_forces": np.repeat([[0.0], [0.003], [0.1]], [2, 3, 1], axis=0) * np.ones(3),
    }
    found = errors(known, np.array([True, True, False]))
    assert found.energy == pytest.approx(3.5) and found.relative_energy == pytest.approx((0 + 7) / 2)  # 1 meV in the middle
    assert found.energy_per_atom == pytest.approx((0.5 + 2) / 2)
    assert found.forces == pytest.approx(3 * 3 / 5)  # over the atoms of both


def test_errors_over_seeds():
    def row(way, seed, forces, split="temporal"):
        found = {"300 K": Errors(1.0, 0.5, 0.1, forces), "900 K": Errors(2.0, 1.0, 0.2, 2 * forces)} if forces else {}
        result = Result("trained" if forces else "failed", converged=seed == 1)
        return Row(Network(f"{way}{seed}", split, 300, "et-64", way, seed, {}), result, found)

    rows = [row("scratch", 1, 100.0), row("scratch", 2, 120.0), row("fine-tuned", 1, 55.0), row("fine-tuned", 2, None)]
    summaries = summarise(rows)
    assert len(summaries) == 2 * 2 * 4
    by = {(one.way, one.tested, one.kind): one for one in summaries}
    hot = by["scratch", "900 K", "forces"]
    assert (hot.mean, hot.seeds, hot.gain, hot.converged) == (220.0, 2, None, 1) and hot.spread == pytest.approx(
        np.sqrt(800)
    )
    tuned = by["fine-tuned", "300 K", "forces"]
    assert tuned.gain == pytest.approx(0.45) and tuned.spread is None and tuned.unit == "meV/angstrom"
    assert rows[3].as_dict()["status"] == "failed" and rows[0].as_dict()["forces of 900 K"] == 200.0
    axes = error_figure([*summaries, *summarise([row("scratch", 1, 50.0, "hotter")])]).axes
    assert [one.get_title() for one in axes] == [
        f"{kind}, {split} split" for split in ("temporal", "hotter") for kind in ("energy without a constant", "forces")
    ]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["scratch", "fine-tuned"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3", "Give either molecule, which is labelled, or frames, which are"),
        ("molecule: O\nframes: a.xyz", "Give either molecule"),
        ("molecule: none.xyz", "There is no molecule 'none.xyz'"),
        ("frames: {a: b.xyz}", "There is no file of frames 'b.xyz'"),
        ("frames: sets", "should hold one file .* with test in its name, but there is none"),
        ("frames: a.xyz\nsplits: hotter", "The split hotter does not fit these data, but temporal"),
        ("molecule: O\nsplits: given", "The split given does not fit these data, but temporal, hotter"),
        ("molecule: O\nlabels: {temperatures: [600, 300]}", "temperatures must rise"),
        ("molecule: O\nlabels: {interval: 0.1 fs}", "must be a multiple of the timestep of 0.0005 ps"),
        ("molecule: O\nlabels: {interval: 10 fs, timestep: 0.7 fs}", "must be a multiple of the timestep of 0.0007 ps"),
        ("molecule: O\nheld_out: {val: 0.5, test: 0.5}", "leave nothing to train on"),
        ("molecule: O\nsizes: [3, 3]", "sizes has 3 twice"),
        ("molecule: O\ntraining: {derivative: false}", "derivative is set for each network by the study"),
        ("molecule: O\ntraining: {y_wight: 1}", "no setting .y_wight.. Did you mean .y_weight."),
        ("molecule: O\ntraining_of: {scratch: {encoder: et-64}}", "encoder is set for each network"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "sets").mkdir()
    for name in ("a.xyz", "sets/train.xyz", "sets/val.xyz"):
        write(tmp_path / name, frames(1))
    (tmp_path / "s.yaml").write_text(f"{text}\n")
    with pytest.raises(GeomGNNError, match=message):
        load_forces(tmp_path / "s.yaml")


def test_a_folder_of_three_files_has_its_split(tmp_path):
    (tmp_path / "mal").mkdir()
    for name in ("train", "val", "test"):
        write(tmp_path / "mal" / f"mal_{name}.xyz", frames(2))
    (tmp_path / "s.yaml").write_text("frames: mal\n")
    settings = load_forces(tmp_path / "s.yaml")
    assert settings.possible_splits() == ("given",) and list(settings.frames) == ["train", "val", "test"]


def test_the_protocol_is_the_study_of_the_page():
    settings = load_forces(Path(__file__).parents[2] / "protocols" / "forces-malonaldehyde.yaml")
    assert settings.labels.temperatures == (300.0, 600.0, 900.0) and settings.splits == settings.possible_splits()
    assert replace(Labels(), unit="eV").factor() == 1.0
