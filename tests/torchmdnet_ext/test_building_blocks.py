"""Our blocks are those of TorchMD-Net under the same names: values, parameters, and what they start from."""

import pytest
import torch
from torchmdnet.models import utils as upstream
from torchmdnet.models.torchmd_et import TorchMD_ET

from torchmdnet_ext.heads.noise import _GatedBlock
from torchmdnet_ext.models.building_blocks import ACTIVATIONS, PRECISIONS, RADIAL_BASES, CosineCutoff
from torchmdnet_ext.models.equivariant_transformer import INFLUENCES, SmoothEquivariantTransformer

CUTOFF = 5.5
DISTANCES = torch.linspace(0.0, 7.0, 281)


def test_names():
    assert list(ACTIVATIONS) == list(upstream.act_class_mapping) and PRECISIONS == upstream.dtype_mapping
    assert list(RADIAL_BASES) == list(upstream.rbf_class_mapping)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    x = torch.linspace(-8, 8, 161)
    torch.testing.assert_close(ACTIVATIONS[name]()(x), upstream.act_class_mapping[name]()(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("name", RADIAL_BASES)
def test_radial_bases(name, trainable):
    ours, theirs = RADIAL_BASES[name](CUTOFF, 24, trainable), upstream.rbf_class_mapping[name](0.0, CUTOFF, 24, trainable)
    for kind in ("named_parameters", "named_buffers"):
        assert list(dict(getattr(ours, kind)())) == list(dict(getattr(theirs, kind)()))
    for _ in range(2):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), check_device=False)
        assert torch.equal(ours(DISTANCES), theirs(DISTANCES))
        for basis in (ours, theirs):
            for tensor in basis.state_dict().values():
                tensor.mul_(1.1)
            assert not torch.equal(basis(DISTANCES), upstream.rbf_class_mapping[name](0.0, CUTOFF, 24, trainable)(DISTANCES))
        ours.reset_parameters()
        theirs.reset_parameters()


@pytest.mark.parametrize("neighbor_embedding", [False, True])
@pytest.mark.parametrize("influence", INFLUENCES)
def test_parameters_are_in_the_order_in_which_optimisers_number_them(influence, neighbor_embedding):
    """Or a training that was begun before would go on with the moments of other parameters."""
    settings = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "num_heads": 4, "distance_influence": influence}
    networks = [one(**settings, neighbor_embedding=neighbor_embedding) for one in (SmoothEquivariantTransformer, TorchMD_ET)]
    ours, theirs = ([(name, p.shape) for name, p in network.named_parameters()] for network in networks)
    assert ours == theirs


def test_cutoff():
    assert torch.equal(CosineCutoff(CUTOFF)(DISTANCES), upstream.CosineCutoff(0.0, CUTOFF)(DISTANCES))


@pytest.mark.parametrize("activated", [False, True])
def test_gated_block(activated):
    torch.manual_seed(1)
    ours = _GatedBlock(16, 8, "silu", activated, torch.float32)
    theirs = upstream.GatedEquivariantBlock(16, 8, scalar_activation=activated)
    ours.load_state_dict(theirs.state_dict())
    x, v = torch.randn(7, 16), torch.randn(7, 3, 16)
    for mine, other in zip(ours(x, v), theirs(x, v), strict=True):
        torch.testing.assert_close(mine, other)
