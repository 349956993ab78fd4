"""The physics that every representation network must respect, as one suite of tests.

Subclass `PhysicsSuite` under a name that starts with `Test` and give it a `make`.
"""

import itertools
from typing import NamedTuple

import pytest
import torch

from torchmdnet_ext.models import neighbours

CUTOFF = 3.5  # angstrom, of every network in the suite
DTYPES = (torch.float32, torch.float64)


class Tolerance(NamedTuple):
    """Largest difference allowed between two results, relative to the largest number in them."""

    same: float  # the same arithmetic in another order
    moved: float  # other coordinates: rounding of positions enters


TOLERANCES = {torch.float32: Tolerance(1e-5, 5e-5), torch.float64: Tolerance(1e-13, 1e-12)}
STEP = 1e-6  # angstrom, across the cutoff
JUMP = 1e-9  # largest jump over that step, relative; a kink of the forces, proportional to the step, is larger as well
# reduced box vectors, their numbers exact in float32
ORTHORHOMBIC = [[8.0, 0.0, 0.0], [0.0, 9.5, 0.0], [0.0, 0.0, 7.25]]
TRICLINIC = [[8.0, 0.0, 0.0], [-2.75, 7.875, 0.0], [3.125, -3.375, 7.5]]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def molecule(n=14, seed=0, density=0.045):
    """Mixed elements z (n,) and positions (n, 3) in float64 angstrom, no two atoms closer than 0.9 angstrom."""
    z = torch.tensor([1, 6, 7, 8, 9, 16, 17, 35])[torch.randint(0, 8, (n,), generator=generator(seed))]
    width, draw, pos = (n / density) ** (1 / 3), generator(seed + 1), []
    while len(pos) < n:
        candidate = torch.rand(3, generator=draw, dtype=torch.float64) * width
        if all((candidate - other).norm() > 0.9 for other in pos):
            pos.append(candidate)
    return z, torch.stack(pos)


def orthogonal(seed, proper):
    """A random rotation, or a rotation times the inversion."""
    q, r = torch.linalg.qr(randn(3, 3, seed=seed))
    q = q * torch.sign(torch.diagonal(r))
    return q if (torch.det(q) > 0) == proper else -q


def as_if_trained(network, seed=11):
    """Move every parameter off its initial value: biases that start at zero would hide discontinuities."""
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter += 0.3 * randn(*parameter.shape, seed=seed + k).to(parameter.dtype)
    return network


def relative(a, b):
    """Largest difference of two tensors over the largest number in them."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


def run(network, z, pos, batch=None, **options):
    x, v, *_ = network(z, pos, torch.zeros_like(z) if batch is None else batch, **options)
    return x, v


def energy(network, z, pos, **options):
    """A scalar that every feature has a part in, for forces."""
    x, v = run(network, z, pos, **options)
    return (x * randn(*x.shape, seed=3).to(x.dtype)).sum() + (v * randn(*v.shape, seed=4).to(v.dtype)).sum()


def force(network, z, pos, **options):
    pos = pos.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(energy(network, z, pos, **options), pos)
    return gradient


class PhysicsSuite:
    """Tests of one kind of network; `make` is all that a subclass must define."""

    def make(self, **settings):
        """The network with 16 channels and `CUTOFF`, float32 parameters; `settings` are its own."""
        raise NotImplementedError

    def rotate_vectors(self, v, q):
        """Vector features (N, K, H) in a frame turned by q; networks of degree 2 override it."""
        return torch.einsum("ij,njh->nih", q.to(v.dtype), v)

    @pytest.fixture(scope="class")
    def network(self):
        return {dtype: self.network_of(dtype) for dtype in DTYPES}

    def network_of(self, dtype, **settings):
        torch.manual_seed(7)
        return as_if_trained(self.make(**settings)).to(dtype).eval()

    def test_the_network_sees_its_surroundings(self, network):
        z, pos = molecule()
        x, v = run(network[torch.float64], z, pos)
        x2, v2 = run(network[torch.float64], z, pos + 0.1 * randn(*pos.shape, seed=5))
        assert x.shape == (14, 16) and v.shape[0] == 14 and v.shape[2] == 16
        assert relative(x, x2) > 1e-2 and relative(v, v2) > 1e-2
        assert bool((v.abs().amax(dim=(0, 2)) > 1e-3).all())

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
    def test_equivariant_under_rotations_and_reflections(self, network, dtype, proper):
        z, pos = molecule(16)
        x, v = run(network[dtype], z, pos.to(dtype))
        for seed in range(5):
            q = orthogonal(100 + seed, proper)
            turned_x, turned_v = run(network[dtype], z, (pos @ q.T).to(dtype))
            assert relative(turned_x, x) < TOLERANCES[dtype].moved
            assert relative(turned_v, self.rotate_vectors(v, q)) < TOLERANCES[dtype].moved

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_invariant_under_translation(self, network, dtype):
        z, pos = molecule()
        for there, here in zip(
            run(network[dtype], z, (pos + torch.tensor([3.0, -7.0, 11.0])).to(dtype)),
            run(network[dtype], z, pos.to(dtype)),
            strict=True,
        ):
            assert relative(there, here) < TOLERANCES[dtype].moved

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equivariant_under_permutation(self, network, dtype):
        z, pos = molecule()
        order = torch.randperm(len(z), generator=generator(8))
        for other, one in zip(
            run(network[dtype], z[order], pos[order].to(dtype)), run(network[dtype], z, pos.to(dtype)), strict=True
        ):
            assert relative(other, one[order]) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batch_is_the_same_as_single(self, network, dtype):
        molecules = [molecule(n, seed=n) for n in (13, 1, 17, 2, 12)]
        z = torch.cat([z for z, _ in molecules])
        pos = torch.cat([pos for _, pos in molecules]).to(dtype)  # all of them in the same place
        batch = torch.arange(5).repeat_interleave(torch.tensor([len(z) for z, _ in molecules]))
        together = run(network[dtype], z, pos, batch)
        alone = [run(network[dtype], z, pos.to(dtype)) for z, pos in molecules]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_far_fragments_do_not_know_of_each_other(self, network, dtype):
        (z1, pos1), (z2, pos2) = molecule(12, seed=1), molecule(13, seed=2)
        pos2 = pos2 + torch.tensor([16.0, 0.0, 0.0])
        together = run(network[dtype], torch.cat([z1, z2]), torch.cat([pos1, pos2]).to(dtype))
        alone = [run(network[dtype], z1, pos1.to(dtype)), run(network[dtype], z2, pos2.to(dtype))]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[dtype].same

    def test_forces_are_the_derivative(self, network):
        z, pos = molecule(12)
        weights = [randn(3, 12, 16, seed=5), randn(3, 12, *run(network[torch.float64], z, pos)[1].shape[1:], seed=6)]

        def projections(pos):
            x, v = run(network[torch.float64], z, pos)
            return torch.einsum("pnh,nh->p", weights[0], x) + torch.einsum("pnkh,nkh->p", weights[1], v)

        assert torch.autograd.gradcheck(projections, pos.requires_grad_(True), eps=1e-6, atol=1e-6, rtol=1e-6)

    def across_the_cutoff(self, network, seed, side=1.0):
        """Relative jumps of the features and of the forces when one pair moves across the cutoff.

        The moving atom gains its first neighbour (`side` 1), or one more among many (`side` -1). A jump is the change over
        a step across the cutoff less that over the step before it: these networks can be steep.
        """
        z, pos = molecule(13, seed=seed)
        a = int((pos - pos.mean(0)).norm(dim=1).argmax())
        outward = torch.nn.functional.normalize(pos[a] - pos.mean(0), dim=0)
        b = (a + 1) % len(z)
        near, features, forces = [], [], []
        for k in (-1.5, -0.5, 0.5):
            moved = pos.clone()
            moved[b] = pos[a] + side * (CUTOFF + k * STEP) * outward
            near.append(int(((moved[b] - moved).norm(dim=1) < CUTOFF).sum()))
            features.append(run(network, z, moved))
            forces.append(force(network, z, moved))
        assert near[0] == near[1] == near[2] + 1

        def jump(before, here, after):
            return relative(after - here + before, here)

        return max(map(jump, *features)), jump(*forces)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("side", [1.0, -1.0], ids=["first", "further"])
    def test_continuous_at_the_cutoff(self, network, seed, side):
        value, slope = self.across_the_cutoff(network[torch.float64], seed, side)
        assert value < JUMP and slope < JUMP

    def test_the_published_network_jumps_at_the_cutoff(self):
        value, slope = self.across_the_cutoff(self.network_of(torch.float64, smooth_cutoff=False), 0)
        assert value > 1e-4 and slope > 1e-4

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_isolated_and_coincident_atoms_are_finite(self, network, dtype):
        z, pos = molecule(12)
        pos[3] = pos[7]
        pos[5] = pos[5] + 50.0
        for k in (slice(0, 12), slice(5, 6)):  # among others, and one atom alone
            x, v = run(network[dtype], z[k], pos[k].to(dtype))
            assert torch.isfinite(x).all() and torch.isfinite(v).all()
            assert torch.isfinite(force(network[dtype], z[k], pos[k].to(dtype))).all()
        isolated, _ = run(network[dtype], z[5:6], pos[5:6].to(dtype))
        assert relative(run(network[dtype], z, pos.to(dtype))[0][5:6], isolated) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("box", [ORTHORHOMBIC, TRICLINIC], ids=["orthorhombic", "triclinic"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_wrapped_is_the_same_as_unwrapped(self, network, dtype, box):
        z, pos = molecule(20, seed=4)
        box = torch.tensor(box, dtype=torch.float64)
        shifts = torch.randint(-2, 3, (4, 20, 3), generator=generator(9)).double()
        expected = run(network[dtype], z, pos.to(dtype), box=box.to(dtype))
        expected_force = force(network[dtype], z, pos.to(dtype), box=box.to(dtype))
        for shift in shifts:
            wrapped = (pos + shift @ box).to(dtype)
            for found, wanted in zip(run(network[dtype], z, wrapped, box=box.to(dtype)), expected, strict=True):
                assert relative(found, wanted) < TOLERANCES[dtype].moved
            found = force(network[dtype], z, wrapped, box=box.to(dtype))
            assert relative(found, expected_force) < 4 * TOLERANCES[dtype].moved
        assert relative(run(network[dtype], z, pos.to(dtype))[0], expected[0]) > 1e-2  # without a box it is another

    def test_boxes_of_a_batch(self, network):
        z, pos = molecule(20, seed=4)
        boxes = torch.tensor([ORTHORHOMBIC, TRICLINIC], dtype=torch.float64)
        batch = torch.tensor([0, 1]).repeat_interleave(20)
        together = run(network[torch.float64], z.repeat(2), pos.repeat(2, 1), batch, box=boxes)
        alone = [run(network[torch.float64], z, pos, box=box) for box in boxes]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[torch.float64].same

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

    def test_single_agrees_with_double_precision(self, network):
        z, pos = molecule(20)
        for single, double in zip(
            run(network[torch.float32], z, pos.float()), run(network[torch.float64], z, pos), strict=True
        ):
            assert single.dtype == torch.float32 and double.dtype == torch.float64
            assert relative(single, double) < TOLERANCES[torch.float32].moved
        assert relative(force(network[torch.float32], z, pos.float()), force(network[torch.float64], z, pos)) < 2e-4

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
