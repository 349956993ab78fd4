"""The physics that every representation network must respect."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openmm_geomgnn.testing.numerics import (
    DTYPES,
    ELEMENTS,
    JUMP,
    STEP,
    TOLERANCES,
    as_if_trained,
    generator,
    molecule,
    orthogonal,
    randn,
    relative,
)

Networks = dict[torch.dtype, nn.Module]
CUTOFF = 3.5  # angstrom
# reduced box vectors for this cutoff, their numbers exact in float32
ORTHORHOMBIC = [[8.0, 0.0, 0.0], [0.0, 9.5, 0.0], [0.0, 0.0, 7.25]]
TRICLINIC = [[8.0, 0.0, 0.0], [-2.75, 7.875, 0.0], [3.125, -3.375, 7.5]]
BOXES = {"orthorhombic": ORTHORHOMBIC, "triclinic": TRICLINIC}


class PhysicsSuite:
    """Tests of a network that takes atoms to scalars x (N, H) and vectors v (N, 3, H).

    Attributes
    ----------
    channels : int
        H.
    cutoff : float
        Of the network, angstrom: no feature depends on an atom further away than all layers reach, and features and forces
        are smooth when a pair of atoms crosses it.
    elements : tuple of int
        Atomic numbers that the network knows.
    periodic : bool
        Whether it takes a box, (3, 3) reduced box vectors as rows in angstrom, or (graphs, 3, 3).

    Examples
    --------
    >>> from openmm_geomgnn.testing import PhysicsSuite
    >>> from torchmdnet_ext.models.visnet import ViSNet
    >>> class TestViSNet(PhysicsSuite):
    ...     channels = 8
    ...     def make(self):
    ...         return ViSNet(hidden_channels=8, num_layers=2, num_rbf=8, num_heads=4, cutoff_upper=self.cutoff, max_z=40)
    """

    channels = 16
    cutoff = CUTOFF
    elements = ELEMENTS
    periodic = True

    def make(self) -> nn.Module:
        """A new network with these `channels` and this `cutoff`, its parameters in float32."""
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    def evaluate(
        self, network: nn.Module, z: Tensor, pos: Tensor, batch: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """(x, v) of atoms z (N,) at pos (N, 3) in angstrom; batch (N,) is the graph of each, all one by default.

        Override it for a network that is called in another way. The only one of the `options` in this suite is `box`.
        """
        x, v, *_ = network(z, pos, torch.zeros_like(z) if batch is None else batch, **options)
        return x, v

    def rotate_vectors(self, v: Tensor, q: Tensor) -> Tensor:
        """Vector features (N, K, H) in a frame turned by q (3, 3); override it for other representations than vectors."""
        return torch.einsum("ij,njh->nih", q.to(v.dtype), v)

    # ---------------------------------------------------------------------------------------------------- what tests use

    @pytest.fixture(scope="class")
    def network(self) -> Networks:
        """A network for each dtype, with the same parameters."""
        return {dtype: self.network_of(dtype) for dtype in DTYPES}

    def network_of(self, dtype: torch.dtype, **settings: Any) -> nn.Module:
        """A network in evaluation mode whose parameters are as if it had been trained."""
        torch.manual_seed(7)
        return as_if_trained(self.make(**settings)).to(dtype).eval()

    def molecule(self, n: int = 14, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Elements (n,) and positions (n, 3) in float64 angstrom."""
        return molecule(n, seed, elements=self.elements)

    def box(self, name: str) -> Tensor:
        """Reduced box vectors, wide enough for the cutoff."""
        return torch.tensor(BOXES[name], dtype=torch.float64) * (self.cutoff / CUTOFF)

    def energy(self, network: nn.Module, z: Tensor, pos: Tensor, **options: Any) -> Tensor:
        """A scalar that every feature has a part in, for forces."""
        x, v = self.evaluate(network, z, pos, **options)
        return (x * randn(*x.shape, seed=3).to(x.dtype)).sum() + (v * randn(*v.shape, seed=4).to(v.dtype)).sum()

    def force(self, network: nn.Module, z: Tensor, pos: Tensor, **options: Any) -> Tensor:
        """The gradient of `energy`, (N, 3)."""
        pos = pos.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.energy(network, z, pos, **options), pos)
        return gradient

    def across_the_cutoff(self, network: nn.Module, seed: int, side: float = 1.0) -> tuple[float, float]:
        """Relative jumps of the features and of the forces when one pair moves across the cutoff.

        The moving atom gains its first neighbour (`side` 1), or one more among many (`side` -1). A jump is the change over
        a step across the cutoff less that over the step before it: these networks can be steep.
        """
        z, pos = self.molecule(13, seed=seed)
        a = int((pos - pos.mean(0)).norm(dim=1).argmax())
        outward = torch.nn.functional.normalize(pos[a] - pos.mean(0), dim=0)
        b = (a + 1) % len(z)
        near, features, forces = [], [], []
        for k in (-1.5, -0.5, 0.5):
            moved = pos.clone()
            moved[b] = pos[a] + side * (self.cutoff + k * STEP) * outward
            near.append(int(((moved[b] - moved).norm(dim=1) < self.cutoff).sum()))
            features.append(self.evaluate(network, z, moved))
            forces.append(self.force(network, z, moved))
        assert near[0] == near[1] == near[2] + 1

        def jump(before: Tensor, here: Tensor, after: Tensor) -> float:
            return relative(after - here + before, here)

        return max(map(jump, *features)), jump(*forces)

    # ------------------------------------------------------------------------------------------------------------- tests

    def test_the_network_sees_its_surroundings(self, network: Networks) -> None:
        z, pos = self.molecule()
        x, v = self.evaluate(network[torch.float64], z, pos)
        x2, v2 = self.evaluate(network[torch.float64], z, pos + 0.1 * randn(*pos.shape, seed=5))
        assert x.shape == (14, self.channels) and v.shape[0] == 14 and v.shape[2] == self.channels
        assert relative(x, x2) > 1e-2 and relative(v, v2) > 1e-2
        assert bool((v.abs().amax(dim=(0, 2)) > 1e-3).all())

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
    def test_equivariant_under_rotations_and_reflections(self, network: Networks, dtype: torch.dtype, proper: bool) -> None:
        z, pos = self.molecule(16)
        x, v = self.evaluate(network[dtype], z, pos.to(dtype))
        for seed in range(5):
            q = orthogonal(100 + seed, proper)
            turned_x, turned_v = self.evaluate(network[dtype], z, (pos @ q.T).to(dtype))
            assert relative(turned_x, x) < TOLERANCES[dtype].moved
            assert relative(turned_v, self.rotate_vectors(v, q)) < TOLERANCES[dtype].moved

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_invariant_under_translation(self, network: Networks, dtype: torch.dtype) -> None:
        z, pos = self.molecule()
        for there, here in zip(
            self.evaluate(network[dtype], z, (pos + torch.tensor([3.0, -7.0, 11.0])).to(dtype)),
            self.evaluate(network[dtype], z, pos.to(dtype)),
            strict=True,
        ):
            assert relative(there, here) < TOLERANCES[dtype].moved

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_equivariant_under_permutation(self, network: Networks, dtype: torch.dtype) -> None:
        z, pos = self.molecule()
        order = torch.randperm(len(z), generator=generator(8))
        for other, one in zip(
            self.evaluate(network[dtype], z[order], pos[order].to(dtype)),
            self.evaluate(network[dtype], z, pos.to(dtype)),
            strict=True,
        ):
            assert relative(other, one[order]) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batch_is_the_same_as_single(self, network: Networks, dtype: torch.dtype) -> None:
        molecules = [self.molecule(n, seed=n) for n in (13, 1, 17, 2, 12)]
        z = torch.cat([z for z, _ in molecules])
        pos = torch.cat([pos for _, pos in molecules]).to(dtype)  # all of them in the same place
        batch = torch.arange(5).repeat_interleave(torch.tensor([len(z) for z, _ in molecules]))
        together = self.evaluate(network[dtype], z, pos, batch)
        alone = [self.evaluate(network[dtype], z, pos.to(dtype)) for z, pos in molecules]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_far_fragments_do_not_know_of_each_other(self, network: Networks, dtype: torch.dtype) -> None:
        (z1, pos1), (z2, pos2) = self.molecule(12, seed=1), self.molecule(13, seed=2)
        pos2 = pos2 + torch.tensor([12.5 + self.cutoff, 0.0, 0.0])
        together = self.evaluate(network[dtype], torch.cat([z1, z2]), torch.cat([pos1, pos2]).to(dtype))
        alone = [self.evaluate(network[dtype], z1, pos1.to(dtype)), self.evaluate(network[dtype], z2, pos2.to(dtype))]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[dtype].same

    def test_forces_are_the_derivative(self, network: Networks) -> None:
        z, pos = self.molecule(12)
        x, v = self.evaluate(network[torch.float64], z, pos)
        weights = [randn(3, *x.shape, seed=5), randn(3, *v.shape, seed=6)]

        def projections(pos: Tensor) -> Tensor:
            x, v = self.evaluate(network[torch.float64], z, pos)
            return torch.einsum("pnh,nh->p", weights[0], x) + torch.einsum("pnkh,nkh->p", weights[1], v)

        assert torch.autograd.gradcheck(projections, pos.requires_grad_(True), eps=1e-6, atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("side", [1.0, -1.0], ids=["first", "further"])
    def test_continuous_at_the_cutoff(self, network: Networks, seed: int, side: float) -> None:
        value, slope = self.across_the_cutoff(network[torch.float64], seed, side)
        assert value < JUMP and slope < JUMP

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_isolated_and_coincident_atoms_are_finite(self, network: Networks, dtype: torch.dtype) -> None:
        z, pos = self.molecule(12)
        pos[3] = pos[7]
        pos[5] = pos[5] + 50.0
        for k in (slice(0, 12), slice(5, 6)):  # among others, and one atom alone
            x, v = self.evaluate(network[dtype], z[k], pos[k].to(dtype))
            assert torch.isfinite(x).all() and torch.isfinite(v).all()
            assert torch.isfinite(self.force(network[dtype], z[k], pos[k].to(dtype))).all()
        isolated, _ = self.evaluate(network[dtype], z[5:6], pos[5:6].to(dtype))
        found = self.evaluate(network[dtype], z, pos.to(dtype))[0][5:6]
        assert relative(found, isolated) < TOLERANCES[dtype].same

    @pytest.mark.parametrize("box", BOXES)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_wrapped_is_the_same_as_unwrapped(self, network: Networks, dtype: torch.dtype, box: str) -> None:
        self._skip_without_box()
        z, pos = self.molecule(20, seed=4)
        rows = self.box(box)
        shifts = torch.randint(-2, 3, (4, 20, 3), generator=generator(9)).double()
        expected = self.evaluate(network[dtype], z, pos.to(dtype), box=rows.to(dtype))
        expected_force = self.force(network[dtype], z, pos.to(dtype), box=rows.to(dtype))
        for shift in shifts:
            wrapped = (pos + shift @ rows).to(dtype)
            for found, wanted in zip(self.evaluate(network[dtype], z, wrapped, box=rows.to(dtype)), expected, strict=True):
                assert relative(found, wanted) < TOLERANCES[dtype].moved
            found = self.force(network[dtype], z, wrapped, box=rows.to(dtype))
            assert relative(found, expected_force) < 4 * TOLERANCES[dtype].moved
        without, _ = self.evaluate(network[dtype], z, pos.to(dtype))
        assert relative(without, expected[0]) > 1e-2

    def test_boxes_of_a_batch(self, network: Networks) -> None:
        self._skip_without_box()
        z, pos = self.molecule(20, seed=4)
        boxes = torch.stack([self.box(name) for name in BOXES])
        batch = torch.tensor([0, 1]).repeat_interleave(20)
        together = self.evaluate(network[torch.float64], z.repeat(2), pos.repeat(2, 1), batch, box=boxes)
        alone = [self.evaluate(network[torch.float64], z, pos, box=box) for box in boxes]
        for k in range(2):
            assert relative(together[k], torch.cat([features[k] for features in alone])) < TOLERANCES[torch.float64].same

    def test_single_agrees_with_double_precision(self, network: Networks) -> None:
        z, pos = self.molecule(20)
        for single, double in zip(
            self.evaluate(network[torch.float32], z, pos.float()), self.evaluate(network[torch.float64], z, pos), strict=True
        ):
            assert single.dtype == torch.float32 and double.dtype == torch.float64
            assert relative(single, double) < TOLERANCES[torch.float32].moved
        forces = self.force(network[torch.float32], z, pos.float()), self.force(network[torch.float64], z, pos)
        assert relative(*forces) < 2e-4

    def _skip_without_box(self) -> None:
        if not self.periodic:
            pytest.skip("the network takes no box")
