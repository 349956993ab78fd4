"""Networks and their neighbour search: the physics suite, upstream's network."""

import pytest
import torch
from physics import NetworkSuite, run
from torch_geometric.nn.models.visnet import Sphere
from torchmdnet.models.torchmd_et import TorchMD_ET

from openmm_geomgnn.testing.encoders import CUTOFF, ORTHORHOMBIC, TRICLINIC
from openmm_geomgnn.testing.numerics import JUMP, as_if_trained, molecule, randn, relative
from torchmdnet_ext.models import neighbours
from torchmdnet_ext.models.building_blocks import vectors
from torchmdnet_ext.models.envelopes import C2Envelope
from torchmdnet_ext.models.equivariant_transformer import SmoothEquivariantTransformer
from torchmdnet_ext.models.neighbours import Neighbours
from torchmdnet_ext.models.visnet import ViSNet

SMALL = {"hidden_channels": 16, "num_layers": 2, "num_rbf": 8, "num_heads": 4, "cutoff_upper": CUTOFF, "max_z": 40}


class TestSmoothEquivariantTransformer(NetworkSuite):
    def make(self, **settings):
        return SmoothEquivariantTransformer(**SMALL, neighbor_embedding=False, trainable_rbf=False, **settings)


class TestWithNeighbourEmbeddingAndVectorCutoff(NetworkSuite):
    def make(self, **settings):
        return SmoothEquivariantTransformer(**SMALL, neighbor_embedding=True, vector_cutoff=True, **settings)

    def test_the_published_network_jumps_at_the_cutoff(self):
        # with vector_cutoff the published network is continuous, and its forces have no jump, but a kink
        value, slope = self.across_the_cutoff(self.network_of(torch.float64, smooth_cutoff=False), 0)
        assert value < JUMP and JUMP < slope < 1e-5


class TestViSNet(NetworkSuite):
    def make(self, **settings):
        return ViSNet(**SMALL, **settings)


class Degree2(NetworkSuite):
    def rotate_vectors(self, v, q):
        points = randn(50, 3, seed=1)
        sphere = Sphere(lmax=2)
        # the matrix that turns spherical harmonics, from their values at points and at the turned points
        turn = torch.linalg.lstsq(sphere(points), sphere(points @ q.T)).solution.T
        return torch.einsum("ij,njh->nih", turn.to(v.dtype), v)


class TestViSNetOfDegree2(Degree2):
    def make(self, **settings):
        return ViSNet(**SMALL, lmax=2, **settings)


class TestViSNetOfDegree2WithVertexFeatures(Degree2):
    def make(self, **settings):
        return ViSNet(**SMALL, lmax=2, vertex=True, **settings)


class TestViSNetWithNormalisedVectors(NetworkSuite):
    """`max_min` is not smooth, as its documentation says; all else holds for it as well."""

    test_continuous_at_the_cutoff = None

    def make(self, **settings):
        return ViSNet(**SMALL, vecnorm_type="max_min", trainable_vecnorm=True, **settings)


class TestNeighbours:
    @staticmethod
    def found(graph):
        order = torch.argsort(torch.minimum(graph.i, graph.j) * 10_000 + torch.maximum(graph.i, graph.j))
        return torch.minimum(graph.i, graph.j)[order], torch.maximum(graph.i, graph.j)[order], graph.distance[order]

    @pytest.mark.parametrize("box", [ORTHORHOMBIC, TRICLINIC], ids=["orthorhombic", "triclinic"])
    def test_nearest_images_are_those_of_a_search_over_all_images(self, box):
        _, pos = molecule(40, seed=3, density=0.08)
        box = torch.tensor(box, dtype=torch.float64)
        pos = pos + torch.randint(-2, 3, (40, 3)).double() @ box
        images = torch.cartesian_prod(*[torch.arange(-6.0, 7.0, dtype=torch.float64)] * 3) @ box
        i, j = torch.triu_indices(40, 40, offset=1)
        vectors = (pos[j] - pos[i])[:, None] + images
        distance, image = vectors.norm(dim=2).min(1)
        near = distance < CUTOFF
        graph = Neighbours(CUTOFF)(pos, torch.zeros(40, dtype=torch.long), box)
        assert torch.equal(graph.i, i[near]) and torch.equal(graph.j, j[near])
        torch.testing.assert_close(graph.distance, distance[near])
        nearest = vectors[torch.arange(len(i)), image][near]
        torch.testing.assert_close(graph.direction, nearest / distance[near, None])

    @pytest.mark.parametrize("chunk", [1, 50, 700, 3000])
    @pytest.mark.parametrize("periodic", [False, True])
    def test_search_in_chunks_is_the_plain_one(self, monkeypatch, chunk, periodic):
        sizes = (30, 1, 45, 2)
        pos = torch.cat([molecule(n, seed=n)[1] for n in sizes])
        batch = torch.arange(4).repeat_interleave(torch.tensor(sizes))
        boxes = torch.tensor([TRICLINIC, ORTHORHOMBIC] * 2, dtype=torch.float64) if periodic else None
        plain = self.found(Neighbours(CUTOFF)(pos, batch, boxes))
        monkeypatch.setattr(neighbours, "CHUNK", chunk)
        for a, b in zip(self.found(Neighbours(CUTOFF)(pos, batch, boxes)), plain, strict=True):
            assert torch.equal(a, b)
        assert len(plain[0]) > 150

    def test_edges_come_in_both_directions_and_with_self_loops(self):
        _, pos = molecule(20)
        graph = Neighbours(CUTOFF)(pos, torch.zeros(20, dtype=torch.long))
        source, target, direction = graph.directed()
        edges = set(zip(source.tolist(), target.tolist(), strict=True))
        assert len(edges) == len(source) == 2 * len(graph.i) + 20
        assert edges == {(b, a) for a, b in edges}
        vectors = pos[source] - pos[target]
        distance = graph.pair_rows(graph.filter_distances())
        torch.testing.assert_close(distance, vectors.norm(dim=1))
        torch.testing.assert_close(direction * distance[:, None], vectors)

    def test_coincident_atoms_have_no_direction_and_no_gradient(self):
        pos = torch.zeros(2, 3, requires_grad=True)
        graph = Neighbours(CUTOFF)(pos, torch.zeros(2, dtype=torch.long))
        assert graph.distance.tolist() == [0.0] and not graph.direction.any()
        (gradient,) = torch.autograd.grad(graph.distance.sum() + graph.direction.sum(), pos)
        assert not gradient.any()

    def test_nothing_at_all(self):
        graph = Neighbours(CUTOFF)(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
        assert graph.n_atoms == 0 and len(graph.i) == 0

    def test_unsorted_batch_is_an_error(self):
        with pytest.raises(ValueError, match="sort the atoms by `batch`"):
            Neighbours(CUTOFF)(torch.zeros(3, 3), torch.tensor([0, 1, 0]))


class TestEnvelope:
    def test_is_1_then_0_with_two_continuous_derivatives(self):
        envelope = C2Envelope(5.0, 1.5)
        assert envelope(torch.tensor([0.0, 3.0, 3.5])).tolist() == [1.0] * 3
        assert envelope(torch.tensor([5.0, 5.5, 100.0])).tolist() == [0.0] * 3
        for knot in (3.5, 5.0):
            for side in (-1e-6, 1e-6):
                d = torch.tensor(knot + side, dtype=torch.float64, requires_grad=True)
                (first,) = torch.autograd.grad(envelope(d), d, create_graph=True)
                assert abs(float(first.detach())) < 1e-9
                if first.requires_grad:
                    assert abs(float(torch.autograd.grad(first, d)[0])) < 1e-4
        inside = envelope(torch.linspace(3.5, 5.0, 50, dtype=torch.float64))
        assert (inside.diff() < 0).all()

    @pytest.mark.parametrize("width", [0.0, -1.0, 5.1])
    def test_impossible_width_is_an_error(self, width):
        with pytest.raises(ValueError, match="envelope_width"):
            C2Envelope(5.0, width)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh"}, "defined with activation: silu"),
        ({"rbf_type": "gauss"}, "defined with rbf_type: expnorm"),
        ({"cutoff_lower": 1.0}, "cutoff_lower"),
        ({"lmax": 3}, "lmax must be 1 or 2, but was 3"),
        ({"vecnorm_type": "minmax"}, "vecnorm_type must be none or max_min, but was minmax"),
    ],
)
def test_settings_that_visnet_does_not_have_are_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        ViSNet(**{**SMALL, **settings})


def test_lower_cutoff_of_the_transformer_is_an_error():
    with pytest.raises(ValueError, match="cutoff_lower must be 0"):
        SmoothEquivariantTransformer(**SMALL, cutoff_lower=1.0)


def test_vectors_of_degree_2_features_are_the_first_three():
    v = torch.arange(8.0).view(1, 8, 1)
    assert vectors(v).flatten().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.slow
@pytest.mark.parametrize("neighbor_embedding", [False, True])
@pytest.mark.parametrize("vector_cutoff", [False, True])
@pytest.mark.parametrize("distance_influence", ["both", "keys", "values", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_envelope_it_is_the_transformer_of_torchmdnet(neighbor_embedding, vector_cutoff, distance_influence, dtype):
    settings = {
        **SMALL,
        "neighbor_embedding": neighbor_embedding,
        "vector_cutoff": vector_cutoff,
        "distance_influence": distance_influence,
    }
    upstream = as_if_trained(TorchMD_ET(**settings, max_num_neighbors=100, dtype=dtype))
    ours = SmoothEquivariantTransformer(**settings, smooth_cutoff=False, dtype=dtype)
    ours.load_state_dict(upstream.state_dict())
    (z1, pos1), (z2, pos2) = molecule(25), molecule(18, seed=2)
    z, pos = torch.cat([z1, z2]), torch.cat([pos1, pos2]).to(dtype)
    batch = torch.tensor([0] * 25 + [1] * 18)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for a, b in zip(run(ours, z, pos, batch), run(upstream, z, pos, batch), strict=True):
        assert a.dtype == dtype and relative(a, b) < tolerance
