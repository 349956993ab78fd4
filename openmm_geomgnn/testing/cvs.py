"""What every collective variable must do: invariance, gradients, periodic boundaries, the same numbers from its file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.testing.numerics import JUMP, STEP, orthogonal
from openmm_geomgnn.units import NM_TO_ANGSTROM

if TYPE_CHECKING:
    import mdtraj

PRECISIONS = {"single": 1e-5, "double": 1e-10}


class CVSuite:
    """Tests of a collective variable: of what its `bind` returns, see `openmm_geomgnn.cv.base.Bound`.

    Attributes
    ----------
    engine : str
        What evaluates it; compiled kernels tabulate, so the tolerances are those of "eager".
    mirror_images : str or None
        "alike", "different", or None where mirror images are refused.
    cutoff : float or None
        Of its encoder, angstrom: value and gradient are smooth where a pair of atoms crosses it. None is not tested.
    spread : float
        nm, by which the tests deform the structure.

    Examples
    --------
    >>> import mdtraj
    >>> from openmm_geomgnn.cv.network import CollectiveVariable
    >>> from openmm_geomgnn.testing import CVSuite
    >>> class TestMyCV(CVSuite):
    ...     def make(self):
    ...         return CollectiveVariable.load("my.cv.safetensors")
    ...     def structure(self):
    ...         return mdtraj.load("topology.pdb")
    """

    engine = "eager"
    mirror_images: str | None = None
    cutoff: float | None = None
    spread = 0.02

    def make(self) -> CollectiveVariable:
        """The collective variable: its method `bind` takes a topology, a precision and an engine."""
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    def structure(self) -> "mdtraj.Trajectory":
        """A trajectory of mdtraj whose first frame is a whole molecule that the collective variable is for."""
        raise NotImplementedError(f"{type(self).__name__} must define structure().")

    # ---------------------------------------------------------------------------------------------------- what tests use

    @pytest.fixture(scope="class")
    def cv(self) -> CollectiveVariable:
        return self.make()

    @pytest.fixture(scope="class")
    def bound(self, cv: Any) -> dict[str, Any]:
        """The CV on the structure's topology, by precision."""
        return {precision: cv.bind(self.structure().topology, precision, self.engine) for precision in PRECISIONS}

    def frames(self, n: int = 6, seed: int = 0, spread: float | None = None) -> np.ndarray:
        """Deformed conformations (n, atoms, 3) in nm."""
        xyz = self.structure().xyz[0].astype(np.float64)
        return xyz + (spread or self.spread) * np.random.default_rng(seed).normal(size=(n, *xyz.shape))

    def positions(self, bound: Any, n: int = 4) -> np.ndarray:
        """Deformed conformations (n, atoms of the CV, 3) in angstrom."""
        return self.frames(n)[:, bound.atoms] * NM_TO_ANGSTROM

    def projected(self, bound: Any, pos: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of the components with `weights` (d,), and its gradient (n, 3)."""
        psi, vjp = bound.value_and_vjp(pos)
        return psi @ weights, vjp(weights)

    # ------------------------------------------------------------------------------------------------------------- tests

    def test_components_vary(self, bound: Any) -> None:
        values = bound["double"].compute(self.frames(50, spread=2.5 * self.spread))
        assert values.shape == (50, bound["double"].dimension) and values.dtype == np.float64
        assert (values.std(axis=0) > 1e-3 * np.abs(values).max()).all()

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_invariant_under_rotation_and_translation(self, bound: Any, precision: str) -> None:
        expected = bound[precision].compute(self.frames())
        for seed in range(5):
            moved = self.frames() @ orthogonal(seed, True).numpy() + [1.5, -0.7, 2.2]
            assert np.abs(bound[precision].compute(moved) - expected).max() < PRECISIONS[precision] * np.abs(expected).max()

    def test_mirror_images(self, bound: Any) -> None:
        if self.mirror_images is None:
            pytest.skip("mirror_images is None")
        expected = bound["double"].compute(self.frames())
        found = bound["double"].compute(self.frames() @ orthogonal(0, False).numpy())
        alike = np.abs(found - expected).max() < PRECISIONS["double"] * np.abs(expected).max()
        assert alike == (self.mirror_images == "alike")

    def test_gradient_is_the_derivative(self, bound: Any) -> None:
        bound, rng = bound["double"], np.random.default_rng(7)
        for pos in self.positions(bound):
            weights, direction, step = rng.normal(size=bound.dimension), rng.normal(size=pos.shape), 1e-4
            _, vjp = bound.value_and_vjp(pos)
            near, far = (
                bound.value_and_vjp(pos + k * step * direction)[0] - bound.value_and_vjp(pos - k * step * direction)[0]
                for k in (1, 2)
            )
            gradient = vjp(weights)  # of the first evaluation, not of those in between
            slope = weights @ (8 * near - far) / (12 * step)
            assert abs((gradient * direction).sum() - slope) < 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(direction)

    def test_no_net_force_and_no_torque(self, bound: Any) -> None:
        for pos in self.positions(bound["double"]):
            _, gradient = self.projected(bound["double"], pos, np.ones(bound["double"].dimension))
            scale = np.abs(gradient).sum()
            assert scale > 0 and np.abs(gradient.sum(axis=0)).max() < 1e-11 * scale
            torque = np.cross(pos - pos.mean(axis=0), gradient).sum(axis=0)
            assert np.abs(torque).max() < 1e-10 * scale * np.ptp(pos)

    def test_one_frame_and_many_are_the_same(self, bound: Any) -> None:
        for precision, tolerance in PRECISIONS.items():
            together = bound[precision].compute(self.frames(4))
            for frame, pos in zip(together, self.positions(bound[precision]), strict=True):
                alone, _ = bound[precision].value_and_vjp(pos)
                np.testing.assert_allclose(alone, frame, rtol=tolerance, atol=tolerance)

    def test_single_agrees_with_double_precision(self, bound: Any) -> None:
        values = [bound[precision].compute(self.frames()) for precision in PRECISIONS]
        assert np.abs(values[0] - values[1]).max() < 2e-5 * np.abs(values[1]).max()

    @pytest.mark.parametrize("skew", [0.0, 0.3], ids=["orthorhombic", "triclinic"])
    def test_a_molecule_cut_by_its_box(self, bound: Any, skew: float) -> None:
        """Every atom is moved into the box on its own, as engines may report it."""
        frames = self.frames()
        lengths = np.ptp(frames, axis=(0, 1)) + 0.8
        box = np.diag(lengths)
        box[1, 0], box[2, 0], box[2, 1] = -skew * lengths[0], skew * lengths[0], -skew * lengths[1]
        corner = frames.mean(axis=(0, 1))  # in the middle of the molecule
        cut = (frames - corner) - np.floor((frames - corner) @ np.linalg.inv(box)) @ box
        assert np.ptp(cut, axis=1).max() > np.ptp(frames, axis=1).max() + 0.1
        found, expected = bound["double"].compute(cut, boxes=box), bound["double"].compute(frames)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8 * np.abs(expected).max())

    def test_continuous_when_a_pair_crosses_the_cutoff(self, bound: Any) -> None:
        """One atom is carried away along a line; at its crossings neither value nor gradient jump."""
        if self.cutoff is None:
            pytest.skip("cutoff is None")
        bound, weights = bound["double"], np.ones(bound["double"].dimension)
        start, direction = self.positions(bound, 1)[0], np.array([0.3, -0.5, 0.8]) / np.sqrt(0.98)
        moving, crossings = len(start) - 2, 0
        for partner in range(3):
            apart = start[moving] - start[partner]
            along = apart @ direction
            reach = self.cutoff**2 - apart @ apart + along**2
            if reach <= 0:
                continue
            distance, values, slopes, inside = np.sqrt(reach) - along, [], [], []
            for step in (-1.5, -0.5, 0.5):
                pos = start.copy()
                pos[moving] += (distance + step * STEP) * direction
                value, slope = self.projected(bound, pos, weights)
                values.append(value)
                slopes.append(slope)
                inside.append(np.linalg.norm(pos[moving] - pos[partner]) < self.cutoff)
            crossings += inside == [True, True, False]
            for before, here, after in (values, slopes):
                # the step across the cutoff is like the step before it; the network may be steep here
                assert np.abs(after - 2 * here + before).max() < 10 * JUMP * np.abs(here).max()
        assert crossings

    def test_a_cv_is_not_changed_by_its_use(self, cv: Any) -> None:
        before = {name: tensor.clone() for name, tensor in cv.state_dict().items()}
        for precision in PRECISIONS:
            cv.bind(self.structure().topology, precision, self.engine).compute(self.frames())
        assert before and all(torch.equal(before[name], tensor) for name, tensor in cv.state_dict().items())

    def test_its_file_gives_the_same_numbers(self, cv: Any, bound: Any, tmp_path: Path) -> None:
        cv.save(tmp_path / "cv.safetensors")
        again = CollectiveVariable.load(tmp_path / "cv.safetensors")
        for precision in PRECISIONS:
            found = again.bind(self.structure().topology, precision, self.engine).compute(self.frames())
            np.testing.assert_array_equal(found, bound[precision].compute(self.frames()))
