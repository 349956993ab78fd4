"""TensorNet: the physics suite, upstream's network, its messages, and its training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from physics import NetworkSuite, run
from torchmdnet.models.model import load_model
from torchmdnet.models.tensornet import TensorNet

from openmm_geomgnn import Encoder
from openmm_geomgnn.testing.encoders import CUTOFF
from openmm_geomgnn.testing.numerics import JUMP, as_if_trained, generator, molecule, randn, relative
from torchmdnet_ext.checkpoints import read_denoiser
from torchmdnet_ext.datasets.conformers import Conformers, write_conformers
from torchmdnet_ext.models import tensornet
from torchmdnet_ext.models.tensor_components import BASIS, FLIP, components, edge_components, matrices, product, spread
from torchmdnet_ext.models.tensornet import Exchange, SmoothTensorNet

pytestmark = pytest.mark.slow

SMALL = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "cutoff_upper": CUTOFF, "max_z": 40}


class TestSmoothTensorNet(NetworkSuite):
    def make(self, **settings):
        return SmoothTensorNet(**SMALL, **settings)

    def test_the_published_network_jumps_at_the_cutoff(self):
        # the published network is continuous, and its forces have no jump, but a kink
        value, slope = self.across_the_cutoff(self.network_of(torch.float64, smooth_cutoff=False), 0)
        assert value < JUMP and JUMP < slope < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("charged", [False, True])
def test_without_envelope_it_is_the_network_of_torchmdnet(dtype, charged):
    torch.manual_seed(2)
    # its kernels are in single precision only
    upstream = as_if_trained(TensorNet(**SMALL, max_num_neighbors=100, static_shapes=False))
    ours = SmoothTensorNet(**SMALL, smooth_cutoff=False)
    ours.load_state_dict(upstream.state_dict())
    (z1, pos1), (z2, pos2) = molecule(25), molecule(18, seed=2)
    z, pos = torch.cat([z1, z2]), torch.cat([pos1, pos2])
    batch = torch.tensor([0] * 25 + [1] * 18)
    q = torch.tensor([1, -2]) if charged else None
    expected, *_ = upstream(z, pos.float(), batch, q=q)
    x, v = run(ours.to(dtype), z, pos.to(dtype), batch, q=q)
    assert x.dtype == v.dtype == dtype and relative(x, expected) < 5e-5
    assert not charged or relative(run(ours, z, pos.to(dtype), batch)[0], x) > 1e-3


class TestComponents:
    def test_are_orthonormal(self):
        torch.testing.assert_close(
            BASIS.flatten(1) @ BASIS.flatten(1).T, torch.eye(9, dtype=torch.float64), rtol=0, atol=1e-15
        )

    def test_are_those_of_the_matrix(self):
        x = randn(5, 9, 4, seed=1)
        matrix = matrices(x)
        torch.testing.assert_close(components(matrix), x)
        torch.testing.assert_close(matrix.square().sum((1, 2)), x.square().sum(1))
        trace = torch.einsum("niih->nh", matrix)
        torch.testing.assert_close(trace, 3**0.5 * x[:, 0])
        antisymmetric = (matrix - matrix.transpose(1, 2)) / 2
        torch.testing.assert_close(components(antisymmetric)[:, 1:4], x[:, 1:4])
        assert not components(antisymmetric)[:, [0, 4, 5, 6, 7, 8]].abs().max() > 1e-15

    def test_product_is_that_of_matrices(self):
        a, b = randn(5, 3, 3, 4, seed=1), randn(5, 3, 3, 4, seed=2)
        torch.testing.assert_close(product(a, b), torch.einsum("nikh,nkjh->nijh", a, b))

    def test_of_an_edge_are_those_of_its_matrix(self):
        u = torch.nn.functional.normalize(randn(6, 3, seed=3), dim=1)
        x, y, w = u.T
        zero = torch.zeros_like(x)
        skew = torch.stack([zero, w, -y, -w, zero, x, y, -x, zero], 1).view(6, 3, 3)
        eye = torch.eye(3, dtype=torch.float64)
        expected = eye + skew + u[:, :, None] * u[:, None] - eye / 3
        torch.testing.assert_close(edge_components(u), components(expected.unsqueeze(3)).squeeze(2))
        torch.testing.assert_close(edge_components(-u), (edge_components(u).unsqueeze(2) * FLIP).squeeze(2))


class TestExchange:
    @pytest.fixture(params=[2, 1000])
    def inputs(self, request, monkeypatch):
        """y, filters and pairs; some pairs at a time, one of them at last."""
        monkeypatch.setattr(tensornet, "PAIRS_AT_ONCE", request.param)
        i, j = torch.randint(0, 3, (2, 5), generator=generator(1))
        return randn(3, 9, 1, seed=2).requires_grad_(True), randn(5, 3, 1, seed=3).requires_grad_(True), i, j

    def test_sums_messages_in_both_directions(self, inputs):
        y, filters, i, j = inputs
        expected = torch.zeros_like(y)
        for p, (a, b) in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            expected[a] += spread(filters[p : p + 1])[0] * y[b]
            expected[b] += spread(filters[p : p + 1])[0] * y[a]
        torch.testing.assert_close(Exchange.apply(*inputs), expected)

    def test_derivatives_of_first_and_second_order(self, inputs):
        y, filters, i, j = inputs
        assert torch.autograd.gradcheck(lambda y, filters: Exchange.apply(y, filters, i, j), (y, filters))
        assert torch.autograd.gradgradcheck(lambda y, filters: Exchange.apply(y, filters, i, j), (y, filters))

    def test_without_pairs_there_are_no_messages(self):
        none = torch.zeros(0, dtype=torch.long)
        assert not Exchange.apply(torch.ones(2, 9, 4), torch.ones(0, 3, 4), none, none).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"equivariance_invariance_group": "SO(3)"}, r"must be O\(3\) for this network, but was SO\(3\)"),
        ({"cutoff_lower": 1.0}, "cutoff_lower must be 0.0"),
    ],
)
def test_settings_that_it_does_not_have_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        SmoothTensorNet(**{**SMALL, **settings})


def test_trains_with_torchmd_train_and_loads_again(tmp_path):
    """Through the unmodified console script; `max_num_neighbors` is accepted and drops no neighbour."""
    shipped = Conformers()
    small = [shipped[i] for i in range(400) if 6 <= len(shipped[i].z) <= 14][:30]
    write_conformers(tmp_path / "small.safetensors", [(data.z, data.pos, "shipped") for data in small])
    configuration = {
        "dataset": "Denoising",
        "dataset_root": None,
        "dataset_arg": {"dataset": "Conformers", "dataset_arg": {"file": str(tmp_path / "small.safetensors")}},
        "model": "smooth-tensornet",
        "output_model": "Noise",
        "embedding_dimension": 16,
        "num_layers": 2,
        "num_rbf": 8,
        "cutoff_upper": 5.0,
        "max_z": 40,
        "max_num_neighbors": 1,
        "derivative": False,
        "train_size": 20,
        "val_size": 4,
        "test_size": 4,
        "num_epochs": 2,
        "batch_size": 5,
        "inference_batch_size": 4,
        "lr": 1e-3,
        "save_interval": 1,
        "num_workers": 0,
        "ngpus": 1,
        "log_dir": str(tmp_path / "log"),
    }
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(configuration))
    script = Path(sys.executable).parent / "torchmd-train"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([script, "--conf", tmp_path / "conf.yaml"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (last,) = (tmp_path / "log").glob("epoch=1-*.ckpt")
    whole = load_model(str(last))
    network = whole.representation_model
    assert type(network) is SmoothTensorNet and network.smooth_cutoff
    z, pos = small[0].z, small[0].pos
    x, v = Encoder.load(last).embed(z, pos)
    expected_x, expected_v, *_ = network(z, pos, torch.zeros_like(z))
    assert relative(torch.from_numpy(x), expected_x) < 1e-5 and relative(torch.from_numpy(v), expected_v) < 1e-5
    noise = read_denoiser(last)(z, pos, torch.zeros_like(z))
    assert noise.shape == pos.shape and relative(noise, whole(z, pos)[0]) < 1e-5
    graph = network.distance(pos, torch.zeros_like(z))
    assert len(graph.i) == int((torch.pdist(pos) < 5.0).sum()) > len(z)
