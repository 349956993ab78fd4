"""The denoising task: noise, hydrogens, weights of elements."""

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torchmdnet import datasets
from torchmdnet.data import DataModule
from torchmdnet.scripts.train import get_argparse

from torchmdnet_ext.datasets.conformers import Conformers, write_conformers
from torchmdnet_ext.denoising import RAREST, Denoising, weighted

MOLECULES = 38


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Some of the conformers that ship with the package, in a store of their own."""
    shipped = Conformers()
    file = tmp_path_factory.mktemp("conformers") / "small.safetensors"
    write_conformers(file, [(shipped[i].z, shipped[i].pos, "shipped") for i in range(MOLECULES)])
    return str(file)


def test_noise_is_drawn_anew_or_fixed_by_the_index(store):
    dataset = Denoising(dataset_arg={"file": store}, sigma=0.3)
    clean = Conformers(file=store)
    assert len(dataset) == len(clean)
    first, second = dataset[4], dataset[4]
    assert not torch.equal(first.y, second.y)
    torch.testing.assert_close(first.pos - 0.3 * first.y, clean[4].pos, atol=1e-5, rtol=0)
    assert torch.equal(first.z, clean[4].z)
    fixed = dataset.fixed_noise()
    state = torch.get_rng_state()
    assert torch.equal(fixed[4].y, fixed[4].y) and torch.equal(fixed[4].pos, dataset.fixed_noise()[4].pos)
    assert torch.equal(torch.get_rng_state(), state)  # does not touch the generator that training uses
    assert not torch.equal(fixed[4].y[:5], fixed[5].y[:5])
    assert not torch.equal(dataset[4].y, dataset[4].y)  # the first view still draws


def test_noise_is_normal(store):
    dataset = Denoising(dataset_arg={"file": store})
    noise = torch.cat([dataset[i % len(dataset)].y for i in range(300)])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_several_noise_scales(store):
    scales = [0.05, 0.2, 0.5]
    dataset = Denoising(dataset_arg={"file": store}, sigma=scales)
    clean = Conformers(file=store)

    def scale(data, index):
        found = (data.pos - clean[index].pos).norm() / data.y.norm()
        nearest = min(scales, key=lambda s: abs(s - found))
        assert found == pytest.approx(nearest, rel=1e-3)
        return nearest

    torch.manual_seed(0)
    drawn = [scale(dataset[3], 3) for _ in range(60)]
    assert all(drawn.count(s) > 8 for s in scales)
    fixed = dataset.fixed_noise()
    by_index = [scale(fixed[i], i) for i in range(MOLECULES)]
    assert set(by_index) == set(scales) and by_index == [scale(fixed[i], i) for i in range(MOLECULES)]


def test_hydrogens_are_removed_at_random(store):
    dataset = Denoising(dataset_arg={"file": store}, remove_hydrogens=0.5)
    clean = Conformers(file=store)
    index = next(i for i in range(MOLECULES) if int((clean[i].z > 1).sum()) >= 2 and bool((clean[i].z == 1).any()))
    torch.manual_seed(0)
    lengths = [len(dataset[index].z) for _ in range(100)]
    heavy = int((clean[index].z > 1).sum())
    assert set(lengths) == {heavy, len(clean[index].z)} and 30 < lengths.count(heavy) < 70
    fixed = dataset.fixed_noise()
    bare = [not bool((fixed[i].z == 1).any()) for i in range(MOLECULES)]
    assert 8 < sum(bare) < 30 and bare == [not bool((fixed[i].z == 1).any()) for i in range(MOLECULES)]
    for i in range(MOLECULES):
        data = fixed[i]
        kept = clean[i].z > 1 if bare[i] else torch.ones(len(clean[i].z), dtype=torch.bool)
        assert torch.equal(data.z, clean[i].z[kept])
        torch.testing.assert_close(data.pos - 0.2 * data.y, clean[i].pos[kept], atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"remove_hydrogens": 0.5, "sigma": [0.1, 0.4]}])
def test_several_at_once_are_those_one_by_one(settings, store):
    indices = [5, 0, 5, 37]
    clean, dataset = Conformers(file=store), Denoising(dataset_arg={"file": store}, **settings)
    for one in (clean, dataset.fixed_noise()):
        for together, alone in zip(one.__getitems__(indices), (one[i] for i in indices), strict=True):
            assert together.keys() == alone.keys() and all(torch.equal(together[key], alone[key]) for key in alone.keys())
    torch.manual_seed(1)
    drawn = dataset.__getitems__(list(range(MOLECULES)) * 20)
    noise = torch.cat([data.y for data in drawn])
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    bare = [not bool((data.z == 1).any()) for data in drawn]
    hydrogens = [bool((clean[i].z == 1).any()) for i in range(MOLECULES)] * 20
    share = sum(without and there for without, there in zip(bare, hydrogens, strict=True)) / sum(hydrogens)
    assert 0.35 < share < 0.6 if settings else share == 0
    for data, number in zip(drawn, list(range(MOLECULES)) * 20, strict=True):
        original = clean[number]
        kept = original.pos if len(data.z) == len(original.z) else original.pos[original.z > 1]
        scale = (data.pos - kept).norm() / data.y.norm()
        assert min(abs(scale - sigma) for sigma in settings.get("sigma", [0.2])) < 1e-3


def test_a_molecule_with_one_heavy_atom_keeps_its_hydrogens(tmp_path):
    methane = torch.tensor([6, 1, 1, 1, 1]), torch.randn(5, 3)
    write_conformers(tmp_path / "methane.safetensors", [(*methane, "methane")])
    dataset = Denoising(dataset_arg={"file": str(tmp_path / "methane.safetensors")}, remove_hydrogens=1.0)
    assert torch.equal(dataset[0].z, methane[0])


def test_weights_of_elements(store):
    dataset = Denoising(dataset_arg={"file": store}, element_weights={"H": 0.25, "O": 2})
    data = dataset[2]
    expected = torch.ones(len(data.z))
    expected[data.z == 1], expected[data.z == 8] = 0.25, 2.0
    assert torch.equal(data.loss_weight, expected)
    assert "loss_weight" not in dataset.fixed_noise()[2]
    assert "loss_weight" not in Denoising(dataset_arg={"file": store})[2]

    balanced = Denoising(dataset_arg={"file": store}, element_weights="balanced").weights
    counts = torch.bincount(torch.cat([data.z for data in Conformers(file=store)]), minlength=119)
    commonest = int(counts.argmax())
    assert balanced[commonest] == 1 and balanced.max() == RAREST
    carbon = float(counts[commonest] / counts[6])
    assert balanced[6] == pytest.approx(min(carbon, RAREST), rel=1e-6)


def test_a_weighted_loss_is_the_weighted_mean():
    torch.manual_seed(0)
    prediction, target, weight = torch.randn(7, 3), torch.randn(7, 3), torch.rand(7)
    expected = ((prediction - target).square().mean(1) * weight).sum() / weight.sum()
    found = weighted(torch.nn.functional.mse_loss, weight)(prediction, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert weighted(torch.nn.functional.mse_loss, torch.zeros(7))(prediction, target) == 0


def test_held_out_sets_of_the_data_module_are_fixed(store, tmp_path):
    args = {
        **vars(get_argparse().parse_args([])),
        "dataset": "Denoising",
        "dataset_arg": {"dataset": "Conformers", "dataset_arg": {"file": store}},
        "train_size": 24,
        "val_size": 8,
        "test_size": 6,
        "batch_size": 6,
        "inference_batch_size": 3,
        "num_workers": 0,
        "derivative": False,
        "log_dir": str(tmp_path),
    }
    module = DataModule(args)
    module.prepare_data()
    for stage in ("fit", "test"):  # the trainer sets up more than once
        module.setup(stage)
    held_out = (module.val_dataloader()[0], module.test_dataloader())
    for loader, fixed in ((held_out[0], True), (held_out[1], True), (module.train_dataloader(), False)):
        a, b = (torch.cat([batch.y for batch in DataLoader(loader.dataset, batch_size=4)]) for _ in range(2))
        assert torch.equal(a, b) is fixed
    assert not set(module.idx_val) & set(module.idx_train)


def test_any_dataset_with_elements_and_positions(monkeypatch):
    class Two(torch.utils.data.Dataset):
        def __init__(self, root, scale=1.0):
            self.root, self.scale = root, scale

        def __len__(self):
            return 2

        def __getitem__(self, index):
            pos = self.scale * torch.ones(2, 3)
            return Data(z=torch.tensor([6, 1]), pos=pos, y=torch.zeros(1, 1), energy=1.0, box=torch.eye(3)[None] * 30)

    monkeypatch.setattr(datasets, "Two", Two, raising=False)
    monkeypatch.setattr(datasets, "__all__", [*datasets.__all__, "Two"])
    dataset = Denoising("here", "Two", '{"scale": 2.0}', sigma=0.1)
    data = dataset.fixed_noise()[1]
    assert dataset.clean.root == "here" and sorted(data.keys()) == ["box", "pos", "y", "z"] and data.y.shape == (2, 3)
    torch.testing.assert_close(data.pos - 0.1 * data.y, torch.full((2, 3), 2.0))


@pytest.mark.parametrize("sigma", [0.0, -0.1, float("nan"), float("inf"), [], [0.1, -0.2], "0.2"])
def test_sigma_must_be_positive(sigma, store):
    with pytest.raises(ValueError, match="sigma must be positive"):
        Denoising(dataset_arg={"file": store}, sigma=sigma)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_lie_between_0_and_1(share, store):
    with pytest.raises(ValueError, match="remove_hydrogens was"):
        Denoising(dataset_arg={"file": store}, remove_hydrogens=share)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("even", "give 'balanced'"),
        ({"Xx": 1.0}, "'Xx', which is not the symbol"),
        ({"H": -1.0}, "weight of H"),
        ({"H": "high"}, "weight of H"),
    ],
)
def test_element_weights_are_checked(weights, message, store):
    with pytest.raises(ValueError, match=message):
        Denoising(dataset_arg={"file": store}, element_weights=weights)


@pytest.mark.parametrize("name", ["Conformer", "Denoising"])
def test_unknown_datasets_are_errors(name):
    with pytest.raises(ValueError, match=f"Unknown dataset '{name}'.*Conformers"):
        Denoising(dataset=name)
