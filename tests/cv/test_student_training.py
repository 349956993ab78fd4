"""Training of students: what they learn of a teacher, and the conformations that they learn it at."""

import numpy as np
import pytest
import torch
from student_cases import BONDS, HEAVY, PAIRS, TORSIONS, frames, student

from openmm_geomgnn.cv.students import training
from openmm_geomgnn.cv.students.augmentation import Moves
from openmm_geomgnn.cv.students.coordinates import (
    InternalCoordinates,
    nearest_pairs,
    rotatable_bonds,
)
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.cv.students.training import TeacherLabels, change_along, errors, train, turning, values_and_gradients

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cv():
    return student()


class TestTraining:
    pos = torch.tensor(10 * frames(120)[:, HEAVY], dtype=torch.float32)

    def labels(self, network, pos):
        values, gradients = values_and_gradients(network, InternalCoordinates(TORSIONS, PAIRS), pos)
        return TeacherLabels(pos, values.float(), gradients.detach().float())

    def test_gradients_are_those_of_autograd(self, cv):
        pos = self.pos[:5].double().requires_grad_(True)
        _, gradients = values_and_gradients(cv.network, cv.coordinates, pos.detach())
        for component in range(2):
            (expected,) = torch.autograd.grad(cv.network(cv.coordinates(pos))[:, component].sum(), pos)
            torch.testing.assert_close(gradients[:, component], expected, rtol=1e-10, atol=1e-12)

    def test_learns_a_student_and_ends_at_its_best(self, cv):
        labels, stopping = self.labels(cv.network, self.pos[:100]), self.labels(cv.network, self.pos[100:])
        torch.manual_seed(0)
        network, seen = StudentNetwork(len(cv.coordinates), 32, 2), []
        arguments = {"epochs": 60, "batch_size": 20, "patience": 60, "learning_rate": 1e-2}
        result = train(network, cv.coordinates, labels, stopping, progress=lambda *row: seen.append(row), **arguments)
        assert [row[0] for row in seen] == list(range(1, 61)) and result["loss"] == min(row[2] for row in seen)
        assert result["loss"] < 0.2 * seen[0][2] and seen[result["best_epoch"] - 1][2] == result["loss"]
        found = errors(network, cv.coordinates, stopping)
        weighted = [1 - r2 + g**2 for r2, g in zip(found["r2"], found["gradient_error"], strict=True)]
        assert np.isfinite(weighted).all() and min(found["r2"]) > 0.5

    def test_errors(self, cv):
        labels = self.labels(cv.network, self.pos)
        exact = errors(cv.network, cv.coordinates, labels)
        assert min(exact["r2"]) > 1 - 1e-9 and max(exact["gradient_error"]) < 1e-5
        shifted = labels._replace(values=labels.values + torch.tensor([0.0, 2.0]), gradients=1.25 * labels.gradients)
        found = errors(cv.network, cv.coordinates, shifted)
        np.testing.assert_allclose(found["rmse"], [0.0, 2.0], atol=1e-4)
        np.testing.assert_allclose(found["gradient_error"], 0.2, rtol=1e-4)
        assert "turning_error" not in found
        turning = errors(cv.network, cv.coordinates, shifted, rotatable_bonds(BONDS, len(HEAVY)))["turning_error"]
        np.testing.assert_allclose(turning, 0.2, rtol=1e-4)
        np.testing.assert_allclose(found["r2"][1], 1 - 4 / float(labels.values[:, 1].var(correction=0)), rtol=1e-3)

    def test_change_along_turns(self, cv):
        """That of turning a part of the molecule by a small angle."""
        turns, pos, step = rotatable_bonds(BONDS, len(HEAVY)), self.pos[:3].double(), 1e-5
        found = change_along(turning(turns, pos), values_and_gradients(cv.network, cv.coordinates, pos)[1])
        assert found.shape == (3, 2, len(turns)) and len(turns) > 1
        for number, (a, b, rows) in enumerate(turns):
            moved = pos.clone()
            axis = torch.nn.functional.normalize(pos[:, b] - pos[:, a], dim=1)
            moved[:, rows] += step * torch.linalg.cross(axis[:, None], pos[:, rows] - pos[:, b, None])
            change = (cv.network(cv.coordinates(moved)) - cv.network(cv.coordinates(pos))) / step
            torch.testing.assert_close(found[:, :, number], change, rtol=1e-3, atol=1e-4)
        assert change_along(turning([], pos), torch.ones(3, 2, len(HEAVY), 3).double()).shape == (3, 2, 0)

    def test_turns_are_learned_where_they_are_asked_for(self, cv, monkeypatch):
        """And what is kept of the frames is what would be computed."""
        turns = rotatable_bonds(BONDS, len(HEAVY))
        labels, arguments = self.labels(cv.network, self.pos), {"epochs": 15, "batch_size": 30, "learning_rate": 1e-2}

        def error(turns, weight=1.0):
            torch.manual_seed(0)
            network = StudentNetwork(len(cv.coordinates), 16, 2)
            train(network, cv.coordinates, labels, labels, turns=turns, gradient_weight=weight, **arguments)
            found = errors(network, cv.coordinates, labels, rotatable_bonds(BONDS, len(HEAVY)))
            return np.mean(found["turning_error"])

        learned = error(turns)
        assert learned < error([]) < error([], weight=0.0)
        monkeypatch.setattr(training, "_KEPT", 0)
        assert error(turns) == pytest.approx(learned, rel=1e-3)

    def test_patience(self, cv):
        """The gradients say something else than the values, so nothing is learned for long."""
        labels = self.labels(cv.network, self.pos[:40])
        network, seen = StudentNetwork(len(cv.coordinates), 4, 2), []
        stopping = labels._replace(values=torch.randn(labels.values.shape, generator=torch.Generator().manual_seed(2)) * 50)
        result = train(
            network, cv.coordinates, labels, stopping, epochs=200, patience=3, progress=lambda *row: seen.append(row)
        )
        assert result["epochs"] == len(seen) < 200 and result["best_epoch"] == len(seen) - 3


class TestMoves:
    start = 10 * frames(1, spread=0.0)[0, HEAVY]
    turnable = rotatable_bonds(BONDS, len(HEAVY))

    def noisy(self, number):
        return self.start + np.random.default_rng(0).normal(size=(number, 10, 3)) * 0.02

    def turning(self, frames, turnable):
        moves = Moves(BONDS, frames, 0.05, seed=1)
        assert moves.turnable == [] and len(moves.turned(5)) == 0  # these frames do not differ about any bond
        moves.turnable = turnable
        return moves

    def test_turning_keeps_bonds_and_angles_and_avoids_clashes(self):
        spread = self.noisy(40)
        made = self.turning(spread, self.turnable).turned(30)
        assert made.shape == (30, 10, 3)
        stiff = nearest_pairs(spread, BONDS, PAIRS, 20).T
        lengths = [np.linalg.norm(np.diff(pos[:, stiff], axis=1)[:, 0], axis=2) for pos in (made, spread)]
        assert np.ptp(lengths[0], axis=0).max() < 0.2  # 9 bonds and 11 angles
        apart = np.linalg.norm(made[:, :, None] - made[:, None], axis=3)[:, ~np.eye(10, dtype=bool)]
        assert apart.min() > 1.1
        coordinates = InternalCoordinates(TORSIONS, [])(torch.tensor(made)).std(0)
        assert (coordinates[: len(TORSIONS)] > 0.1).all()

    def test_bonds_that_turn_in_the_data_are_found(self):
        a, b, _ = phi = self.turnable[1]
        made = self.turning(self.noisy(40), [phi]).turned(60)
        assert [bond[:2] for bond in Moves(BONDS, made, 0.05, seed=1).turnable] == [(a, b)]

    def test_draws(self):
        moves = Moves(BONDS, self.noisy(40), 0.05, seed=1)
        drawn = moves.drawn(100)
        counts = np.unique(drawn, axis=0, return_counts=True)[1]
        assert len(drawn) == 100 and set(counts.tolist()) == {2, 3}
        assert 0.045 < (moves.displaced(drawn) - drawn).std() < 0.055
        np.testing.assert_array_equal(*(Moves(BONDS, drawn, 0.05, seed=7).displaced(drawn) for _ in range(2)))
