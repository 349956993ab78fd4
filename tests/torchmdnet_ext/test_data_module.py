"""What `torchmd-train` makes of our datasets before it trains: whole molecules held out, and settings that are refused."""

import numpy as np
import pytest
import torch
from build_sources import Walk
from torchmdnet.data import DataModule
from torchmdnet.scripts.train import get_argparse

from openmm_geomgnn.conformers.build import Build, LabelledSource, build
from torchmdnet_ext.datasets.conformers import Conformers, write_conformers

PLAIN = {"dataset": "Conformers", "dataset_arg": None}


@pytest.fixture
def set_up(tmp_path, repository):
    """The DataModule of the protocol that ships, set up as the trainer does; settings can be changed."""

    def set_up(**changes):
        args = vars(get_argparse().parse_args(["--conf", str(repository / "protocols" / "pretrain.yaml")]))
        module = DataModule({**args, "num_workers": 0, "log_dir": str(tmp_path), **changes})
        for stage in ("fit", "test"):
            module.setup(stage)
        return module

    return set_up


@pytest.fixture
def store(tmp_path):
    """Conformers of 60 molecules, one after the other: 20 of each."""
    rng = np.random.default_rng(0)
    molecules = [rng.choice([1, 6, 7, 8], size=6) for _ in range(60)]
    path = tmp_path / "store" / "conformers.safetensors"
    write_conformers(path, [(z, rng.normal(scale=3.0, size=(6, 3)), "test") for z in molecules for _ in range(20)])
    return path


def molecules_of(module):
    """Of training, validation and test set, the molecules in each."""
    loaded = [part.dataset for part in (module.train_dataset, module.val_dataset, module.test_dataset)]
    clean = [getattr(dataset, "clean", dataset) for dataset in loaded]
    return [
        {tuple(dataset[i].z.tolist()) for i in part}
        for dataset, part in zip(clean, (module.idx_train, module.idx_val, module.idx_test), strict=True)
    ]


@pytest.mark.parametrize("changes", [{}, PLAIN], ids=["denoising", "conformers"])
@pytest.mark.parametrize("own", [False, True], ids=["shipped", "own store"])
def test_whole_molecules_are_held_out(set_up, store, tmp_path, capsys, changes, own):
    module = set_up(**changes, **({"dataset_root": str(store.parent)} if own else {}))
    total = len(module.dataset)
    assert total == (1200 if own else 11000)
    parts = module.idx_train, module.idx_val, module.idx_test
    assert torch.cat(parts).sort().values.tolist() == list(range(total))
    assert [len(part) / total for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.001)
    training, validation, test = molecules_of(module)
    assert validation and test and not (training & validation or training & test or validation & test)
    assert "Whole molecules are held out." in capsys.readouterr().out
    with np.load(tmp_path / "splits.npz") as written:
        assert np.array_equal(written["idx_val"], module.idx_val)
    assert module.hparams["splits"] is None  # a checkpoint holds no file of this process


def test_sizes_and_seeds(set_up, store):
    changes = {**PLAIN, "dataset_root": str(store), "train_size": 300, "val_size": 0.1, "test_size": 70}
    first, again, other = (set_up(**changes, seed=seed) for seed in (1, 1, 2))
    assert [len(part) for part in (first.idx_train, first.idx_val, first.idx_test)] == [300, 120, 60]
    assert torch.equal(first.idx_val, again.idx_val) and not torch.equal(first.idx_val, other.idx_val)
    rest = set_up(**{**changes, "val_size": None, "test_size": 0})
    assert [len(part) for part in (rest.idx_train, rest.idx_val, rest.idx_test)] == [300, 900, 0]
    for wrong, message in (
        ({"val_size": None, "train_size": None}, "train_size and val_size are both null"),
        ({"val_size": -3}, "val_size is -3"),
        ({"train_size": 1100}, "There are 1200 conformers, fewer than train_size 1100, val_size 0.1, test_size 70"),
    ):
        with pytest.raises(ValueError, match=message):
            set_up(**{**changes, **wrong})


def test_one_trajectory(set_up, tmp_path):
    """Of a single simulation the last frames are held out, with the splits of the store and without."""
    build(Build(tmp_path / "walk", (LabelledSource(Walk(pieces=1), "walk"),)), processes=1)
    splits = {"splits": str(tmp_path / "walk" / "splits.npz")}
    for changes in (splits, {}):
        module = set_up(dataset_root=str(tmp_path / "walk"), **changes)
        found = [part.tolist() for part in (module.idx_train, module.idx_val, module.idx_test)]
        assert found == [list(range(8)), [8], [9]]


def test_nothing_to_validate_on(set_up, tmp_path):
    path = tmp_path / "two.safetensors"
    write_conformers(path, [([6, 8], np.eye(3)[:2], "test")] * 2)
    message = r"no conformers for validation \(train 2, val 0, test 0\), but checkpoint_monitor, .*lr_metric follow"
    with pytest.raises(ValueError, match=message):
        set_up(dataset_root=str(path))
    train = "train_total_mse_loss"
    module = set_up(dataset_root=str(path), checkpoint_monitor=train, early_stopping_monitor=train, lr_metric="train")
    assert len(module.idx_train) == 2
    with pytest.raises(ValueError, match="nothing to train on"):
        set_up(dataset_root=str(path), train_size=0)


class TestRefused:
    def test_a_root_that_does_not_exist(self, set_up, tmp_path):
        with pytest.raises(ValueError, match=r"dataset_root is .*mistyped, which does not exist"):
            set_up(dataset_root=str(tmp_path / "mistyped"))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"sgima": 0.2}, r"'sgima', which Denoising does not know: .*sigma.*Did you mean 'sigma'\?"),
            ({"dataset_arg": {"flie": "x"}}, r"'flie', which Conformers does not know: .*Did you mean 'file'\?"),
            ({"dataset": "QM9", "dataset_arg": {"lable": "mu"}}, r"'lable', which QM9 does not know: .*'label'"),
            ("{sgima: 0.2}", "'sgima', which Denoising does not know"),
            ("sigma: {", "cannot be read as a dictionary"),
            ([0.2], "must be a dictionary of arguments of Denoising"),
            ({"remove_hydrogens": "half"}, "remove_hydrogens was 'half'"),
        ],
        ids=str,
    )
    def test_arguments_of_a_dataset(self, set_up, given, message):
        with pytest.raises(ValueError, match=message):
            set_up(dataset_arg=given)

    def test_arguments_from_the_command_line(self, set_up):
        assert set_up(dataset_arg="{sigma: 0.3, remove_hydrogens: 0}").dataset.sigma.tolist() == pytest.approx([0.3])

    def test_elements_that_the_network_does_not_know(self, set_up):
        with pytest.raises(ValueError, match=r"max_z is 16, .* up to 15, but the conformers hold S \(16\): set max_z to 17"):
            set_up(max_z=16)
        assert set_up(max_z=17).dataset is not None

    def test_splits_that_do_not_fit(self, set_up, store, tmp_path):
        path = str(tmp_path / "given.npz")
        with pytest.raises(ValueError, match=r"splits is .*given\.npz, which cannot be read"):
            set_up(splits=path)
        np.savez(path, idx_train=np.arange(1000), idx_val=np.arange(1000, 1300))
        with pytest.raises(ValueError, match=r"splits is .*idx_test is not a file"):
            set_up(splits=path)
        np.savez(path, idx_train=np.arange(1000), idx_val=np.arange(1000, 1300), idx_test=np.arange(0))
        assert set_up(splits=path).idx_val.tolist() == list(range(1000, 1300))
        with pytest.raises(ValueError, match="counts to conformer 1299, but there are 1200: it is of another store"):
            set_up(splits=path, dataset_root=str(store))


def test_other_datasets_are_the_trainers_business(set_up, monkeypatch):
    """Denoising of a dataset that is not ours: split as the trainer does it, at random."""
    from torchmdnet import datasets

    monkeypatch.setattr(datasets, "Two", lambda root: [Conformers()[i] for i in range(40)], raising=False)
    monkeypatch.setattr(datasets, "__all__", [*datasets.__all__, "Two"])
    module = set_up(dataset_arg={"dataset": "Two"})
    assert [len(part) for part in (module.idx_train, module.idx_val, module.idx_test)] == [36, 2, 2]
