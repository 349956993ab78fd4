"""The physics suite with what is true of our own networks beyond it, whose settings are those of TorchMD-Net."""

import itertools

import pytest
import torch

from openmm_geomgnn.testing import PhysicsSuite
from openmm_geomgnn.testing.encoders import CUTOFF, ORTHORHOMBIC, TRICLINIC
from openmm_geomgnn.testing.numerics import DTYPES, TOLERANCES, generator, molecule, relative
from torchmdnet_ext.models import neighbours


def run(network, z, pos, batch=None, **options):
    """Scalars and vectors (x, v) of atoms."""
    x, v, *_ = network(z, pos, torch.zeros_like(z) if batch is None else batch, **options)
    return x, v


class NetworkSuite(PhysicsSuite):
    """Tests of one kind of network; a subclass defines `make`, which takes settings of the network."""

    def make(self, **settings):
        raise NotImplementedError

    def test_the_published_network_jumps_at_the_cutoff(self):
        value, slope = self.across_the_cutoff(self.network_of(torch.float64, smooth_cutoff=False), 0)
        assert value > 1e-4 and slope > 1e-4

    def test_box_of_the_network_and_of_the_call(self, network):
        z, pos = molecule(20, seed=4)
        box = torch.tensor(TRICLINIC, dtype=torch.float64)
        periodic = self.network_of(torch.float64, box_vecs=box)
        expected = run(network[torch.float64], z, pos, box=box)
        assert relative(run(periodic, z, pos)[0], expected[0]) < TOLERANCES[torch.float64].same
        other = torch.tensor(ORTHORHOMBIC, dtype=torch.float64)
        expected = run(network[torch.float64], z, pos, box=other)
        assert relative(run(periodic, z, pos, box=other)[0], expected[0]) < TOLERANCES[torch.float64].same

    def test_box_too_small_for_the_cutoff_is_an_error(self, network):
        z, pos = molecule()
        with pytest.raises(ValueError, match=r"6\.900 angstrom wide.*larger box"):
            run(network[torch.float64], z, pos, box=torch.diag(torch.tensor([8.0, 6.9, 8.0], dtype=torch.float64)))

    def test_trains_in_mixed_precision(self):
        """Under the trainer's autocast, linear maps give another precision than the rest."""
        z, pos = molecule(12)
        network = self.make().train()
        expected, _ = run(network, z, pos.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x, v = run(network, z, pos.float())
            (x.sum() + v.sum()).backward()
        assert relative(x, expected) < 0.05
        assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_given_candidate_pairs_give_what_is_found(self, network, dtype):
        molecules = [molecule(n, seed=n) for n in (13, 15)]
        z = torch.cat([z for z, _ in molecules])
        pos = torch.cat([pos for _, pos in molecules]).to(dtype)
        batch = torch.arange(2).repeat_interleave(torch.tensor([13, 15]))
        pairs = list(itertools.chain(itertools.combinations(range(13), 2), itertools.combinations(range(13, 28), 2)))
        i, j = torch.tensor(pairs)[torch.randperm(len(pairs), generator=generator(1))].T
        for given, found in zip(
            run(network[dtype], z, pos, batch, pairs=(j, i)), run(network[dtype], z, pos, batch), strict=True
        ):
            assert relative(given, found) < TOLERANCES[dtype].same

    def test_no_neighbour_is_dropped(self, network, monkeypatch):
        z, pos = molecule(120, density=0.1)
        graph = network[torch.float64].distance(pos, torch.zeros_like(z))
        near = torch.cdist(pos, pos) < CUTOFF
        near.fill_diagonal_(False)
        assert len(graph.i) == int(near.sum()) // 2 and bool(near[graph.i, graph.j].all())
        order = torch.randperm(120, generator=generator(1))
        expected = run(network[torch.float64], z, pos)
        permuted = run(network[torch.float64], z[order], pos[order])
        monkeypatch.setattr(neighbours, "CHUNK", 1000)
        chunked = run(network[torch.float64], z, pos)
        for k in range(2):
            assert relative(permuted[k], expected[k][order]) < TOLERANCES[torch.float64].same
            assert relative(chunked[k], expected[k]) < TOLERANCES[torch.float64].same
