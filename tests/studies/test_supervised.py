"""QM9 with its targets, what is held out of it, and the tables of errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openmm_geomgnn.cli.settings.yaml_files import load_supervised
from openmm_geomgnn.conformers.sources import qm9
from openmm_geomgnn.conformers.sources.base import draw
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.studies.supervised.figures import error_figure
from openmm_geomgnn.studies.supervised.plan import Network, Study
from openmm_geomgnn.studies.supervised.qm9 import ENTRIES, TARGETS, find_target, make_store, molecule_and_scaffold, records
from openmm_geomgnn.studies.supervised.splits import fingerprint, hold_out, seen_in_pretraining, training_set
from openmm_geomgnn.studies.supervised.table import Row, summarise
from openmm_geomgnn.studies.training.folder import Result
from torchmdnet_ext.datasets.conformers import Conformers
from torchmdnet_ext.datasets.labelled import LabelledMolecules, LabelledStore, read_labelled

HELD = {"val": 30, "test": 40, "seed": 1}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("qm9") / "qm9.safetensors"
    make_store(file, 400)
    return file


@pytest.mark.slow
def test_labels_are_those_of_qm9(path):
    store = read_labelled(path)
    assert [label.name for label in store.labels] == list(TARGETS) and len(store) == 400
    rows = store.groups["row"]
    row, entry = next(records(qm9.QM9().files(), rows[7:8]))
    assert row == rows[7] and int(entry["Index"]) == store.arrays["index"][7]
    labels = dict(zip(TARGETS, store.arrays["labels"][7], strict=True))
    assert labels["homo"] == pytest.approx(27.2114 * float(entry["HOMO_au"]), rel=1e-5)
    assert labels["dipole_moment"] == float(entry["Dipole_debye"])
    # bound: less than its free atoms, by some eV an atom
    dataset = LabelledMolecules(path, "energy_U0")
    atoms = dataset.composition()
    binding = (dataset.values - atoms @ dataset.get_atomref().numpy()[:, 0]) / atoms.sum(axis=1)
    assert (binding < -3).all() and (binding > -7).all()
    assert 1 < len(np.unique(store.groups["scaffold"])) < len(np.unique(store.groups["molecule"])) <= 400


@pytest.mark.slow
def test_it_is_known_what_pretraining_saw(path):
    """The conformers that ship are the first of those of the encoders' pre-training."""
    rows, shipped = draw(ENTRIES, 6000, 1), Conformers(sources=["qm9"])
    assert len(shipped) == 6000
    for i, (_, entry) in enumerate(records(qm9.QM9().files(), rows[:20])):
        z, pos = qm9.parse(entry["Elements"], entry["XYZ_Ang"])
        assert shipped[i].z.tolist() == z.tolist()
        assert np.allclose(shipped[i].pos.numpy(), pos - pos.mean(axis=0), atol=1e-3)
    store = read_labelled(path)
    seen = seen_in_pretraining(store, 60_000, 1)
    assert set(rows) <= set(draw(ENTRIES, 60_000, 1))
    assert (seen >= np.isin(store.groups["row"], draw(ENTRIES, 60_000, 1))).all() and 0.3 < seen.mean() < 0.6
    assert not seen_in_pretraining(store, 0, 1).any()


def test_scaffolds_are_those_of_bemis_and_murcko():
    assert molecule_and_scaffold("CC1CCC(O)C1") == ("CC1CCC(O)C1", "C1CCCC1")
    assert molecule_and_scaffold("CCO")[1] == ""
    assert molecule_and_scaffold("C[C@H](N)O") == molecule_and_scaffold("C[C@@H](N)O")
    assert molecule_and_scaffold("no molecule") == ("no molecule", "no molecule")


@pytest.fixture
def store():
    """600 entries of 500 molecules with 250 scaffolds, the first of which a third of them have."""
    rng = np.random.default_rng(1)
    molecule = np.arange(600) % 500
    scaffold = np.where(rng.random(500) < 0.3, 0, rng.integers(1, 250, 500))[molecule]
    arrays = {"ptr": np.arange(601), "index": np.arange(1, 601)}
    return LabelledStore((), arrays, {"molecule": molecule, "scaffold": scaffold})


@pytest.mark.parametrize("kind", ["random", "scaffold"])
def test_whole_groups_are_held_out_of_what_was_not_seen(store, kind):
    seen = np.isin(store.groups["molecule"], np.arange(0, 500, 2))
    held = hold_out(store, kind, **HELD, seen=seen)
    groups = store.groups["molecule" if kind == "random" else "scaffold"]
    parts = [set(groups[part]) for part in (held.val, held.test, held.train)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert 27 <= len(held.val) <= 30 and 36 <= len(held.test) <= 40
    assert not seen[held.val].any() and not seen[held.test].any()
    assert len(held.val) + len(held.test) + len(held.train) + held.left_out == 600
    if kind == "scaffold":
        assert held.left_out > 0 and 0 in parts[2]  # the largest scaffold stays
    small, large = training_set(held, 50, 1), training_set(held, 100, 1)
    assert set(small) < set(large) < set(held.train) and len(small) == 50
    assert set(training_set(held, 50, 2)) != set(small)


def test_two_people_get_the_same_split(store):
    seen = np.zeros(600, dtype=bool)

    def prints(**changes):
        held = hold_out(store, "scaffold", **{**HELD, **changes}, seen=seen)
        return fingerprint(store, {"idx_test": held.test, "idx_train": training_set(held, 50, 1)})

    assert prints() == prints() != prints(seed=2)
    # where the entries stand in a file plays no role
    half = replace(store, arrays={"ptr": np.arange(301), "index": np.arange(1, 601, 2)})
    assert fingerprint(store, {"idx_test": np.array([0, 2])}) == fingerprint(half, {"idx_test": np.array([0, 1])})


def test_too_few_molecules(store):
    with pytest.raises(GeomGNNError, match="0 molecules for test that pre-training did not see, but 40"):
        hold_out(store, "random", **HELD, seen=np.ones(600, dtype=bool))
    held = hold_out(store, "random", **HELD, seen=np.zeros(600, dtype=bool))
    with pytest.raises(GeomGNNError, match="5000 molecules are to be trained on, but the random split leaves 5"):
        training_set(held, 5000, 1)


def test_errors_over_seeds():
    def row(way, seed, mae, size=1000):
        network = Network(f"{way}{seed}", find_target("HOMO"), "random", size, "et-64", way, seed, {})
        return Row(network, Result("trained" if mae else "failed", best_loss=1.0, converged=seed == 1), mae)

    rows = [row("scratch", 1, 100.0), row("scratch", 2, 120.0), row("frozen", 1, 55.0), row("frozen", 2, None)]
    scratch, frozen = summarise(rows)
    assert (scratch.mean, scratch.seeds, scratch.gain, scratch.converged) == (110.0, 2, None, 1)
    assert scratch.spread == pytest.approx(np.sqrt(200)) and scratch.unit == "meV"
    assert (frozen.mean, frozen.seeds, frozen.spread) == (55.0, 1, None)
    assert frozen.gain == pytest.approx(0.45)  # over the seed that both have
    assert rows[3].as_dict()["status"] == "failed" and rows[0].as_dict()["mae"] == 100.0
    axes = error_figure([scratch, frozen]).axes
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["scratch", "frozen"]
    assert axes[0].get_ylabel() == "MAE (meV)"
    sizes = error_figure([scratch, *summarise([row("scratch", 1, 50.0, 10_000)])]).axes
    assert sizes[0].get_xscale() == "log"


def test_larger_sets_have_fewer_epochs():
    study = Study((), {}, (), (), (), 500, 10_000_000, "fitted", {}, {})
    assert [study.epochs_of(size) for size in (1000, 10_000, 110_000)] == [500, 500, 90]
    assert replace(study, most_seen=None).epochs_of(110_000) == 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targets: {hom: 1000}", "QM9 has no target 'hom'.*Did you mean 'HOMO'"),
        ("targets: {HOMO: 1000, homo: 100}", "targets has homo twice"),
        ("targets: {HOMO: [1000, 1000]}", "HOMO has 1000 twice"),
        ("targets: {}", "1 or more"),
        ("targets: {HOMO: 1000}\nways: [thawed]", "ways"),
        ("targets: {HOMO: 1000}\ntraining: {num_epochs: 3}", "num_epochs is set for each network by the study"),
        ("targets: {HOMO: 1000}\ntraining: {lr_pacience: 3}", r"training of .*'lr_pacience'. Did you mean 'lr_patience'"),
        ("targets: {HOMO: 1000}\ntraining_of: {frozen: {learn: 1}}", r"section training_of of .*no setting 'learn'"),
        ("targets: {HOMO: 1000}\ntraining_of: {frozen: {encoder: et-64}}", "encoder is set for each network"),
        ("targets: {HOMO: 1000}\nencoders: et-65", "There is no encoder 'et-65'"),
        ("targets: {HOMO: 1000}\nstore: nowhere.safetensors", "There is no store of labelled molecules"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(f"{text}\n")
    with pytest.raises(GeomGNNError, match=message):
        load_supervised(tmp_path / "s.yaml")


def test_the_protocol_is_the_whole_study():
    settings = load_supervised(Path(__file__).parents[2] / "protocols" / "supervised-qm9.yaml")
    assert settings.targets["HOMO"] == (1000, 10_000, 110_000) and settings.seeds == (1, 2, 3)
    assert settings.splits == ("random", "scaffold") and settings.encoders == ("et-64", "visnet-64")
