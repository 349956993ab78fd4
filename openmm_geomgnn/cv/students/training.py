"""Training of a student on the values and the gradients of its teacher: Sobolev training.

W. M. Czarnecki et al., Sobolev training for neural networks, NeurIPS 2017, arXiv 1706.04859.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates
from openmm_geomgnn.cv.students.network import StudentNetwork

SMALLEST_SCALE = 0.02  # of a coordinate (angstrom, or cosine): what hardly moves in the data must not be blown up
_EVALUATED = 256  # frames at once
_KEPT = 50_000_000  # numbers: the coordinates of all frames and their gradients are kept if they are no more than that

# a bond (a, b) and the atoms (rows,) on the side of b that turn about it, as of `coordinates.rotatable_bonds`
Turn: TypeAlias = tuple[int, int, np.ndarray]


class TeacherLabels(NamedTuple):
    """The teacher's values and gradients for a set of conformations."""

    pos: torch.Tensor  # (F, n, 3), angstrom
    values: torch.Tensor  # (F, d)
    gradients: torch.Tensor  # (F, d, n, 3), per angstrom


def label_frames(teacher: Bound, pos: np.ndarray, progress: Callable[[int], None] | None = None) -> TeacherLabels:
    """Evaluate the teacher on frames: `TeacherLabels` in single precision, without frames where it is not finite.

    Parameters
    ----------
    teacher : BoundCV
    pos : (F, n, 3) float64 ndarray
    progress : callable, optional
        Called with 1 after each conformation.
    """
    kept, values, gradients = [], [], []
    units = np.eye(teacher.dimension)
    for k, frame in enumerate(pos):
        frame = np.ascontiguousarray(frame)
        # one vector-Jacobian product per evaluation of a teacher
        answers = [(psi, vjp(unit)) for unit in units for psi, vjp in [teacher.value_and_vjp(frame)]]
        psi, slopes = answers[0][0], np.stack([slope for _, slope in answers])
        if np.isfinite(psi).all() and np.isfinite(slopes).all():
            kept.append(k)
            values.append(np.array(psi, dtype=np.float32))
            gradients.append(slopes.astype(np.float32))
        if progress is not None:
            progress(1)
    shape = (teacher.dimension, *pos.shape[1:])
    return TeacherLabels(
        torch.tensor(pos[kept], dtype=torch.float32),
        torch.tensor(np.array(values).reshape(-1, teacher.dimension)),
        torch.tensor(np.array(gradients).reshape(-1, *shape)),
    )


def train(
    network: StudentNetwork,
    coordinates: InternalCoordinates,
    labels: TeacherLabels,
    stopping: TeacherLabels,
    *,
    turns: Sequence[Turn] = (),
    gradient_weight: float = 1.0,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float = 5e-3,
    patience: int = 20,
    seed: int = 1,
    progress: Callable[[int, int, float], None] | None = None,
    resume: dict[str, Any] | None = None,
    keep: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Train a student in place; it ends with the weights of the epoch that was best on `stopping`.

    The loss is, for each component, the mean squared error of the value over the variance of the teacher's values, plus
    `gradient_weight` times that of the gradient over the mean square of the teacher's gradients, plus as much of the
    change along `turns`, by which a bias crosses: a GNN's gradient is nearly all along bonds and angles, and its error too.
    The same of `stopping` decides when to stop. Adam, its rate falling along a cosine to zero.

    Parameters
    ----------
    network, coordinates : StudentNetwork, InternalCoordinates
    labels, stopping : TeacherLabels
    turns : list of (a, b, rows), optional
        Bonds about which the molecule turns.
    progress : callable, optional
        Called as progress(epoch, epochs, loss on stopping).
    keep : callable, optional
        Called after each epoch with a function that returns the training's state: dicts and lists of tensors and numbers.
    resume : dict, optional
        Such a state: the training goes on from it, and ends as it would have without a break.

    Returns
    -------
    dict
        `epochs`, `best_epoch`, from 1; `loss`, that of `stopping` at its best.
    """
    network.float().train()
    with torch.no_grad():
        found = torch.cat([coordinates(pos) for pos in labels.pos.split(_EVALUATED)])
        network.mean.copy_(found.mean(0))
        network.scale.copy_(found.std(0).clamp(min=SMALLEST_SCALE))
        network.last.bias.copy_(labels.values.mean(0))
    size, along = _mean_squares(labels, turns)
    weights = [1.0 / labels.values.var(0), gradient_weight / size]
    weights += [(gradient_weight / along).nan_to_num(0.0, 0.0)]  # nothing where nothing turns
    parts = _Parts(coordinates, labels.pos)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * math.ceil(len(labels.pos) / batch_size))
    generator = torch.Generator().manual_seed(seed)
    run: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "best_state": copy.deepcopy(network.state_dict())}
    changing: dict[str, Any] = {"network": network, "optimizer": optimizer, "schedule": schedule}
    if resume is not None:
        run = resume["run"]
        generator.set_state(resume["generator"])
        for name, part in changing.items():
            part.load_state_dict(resume[name])

    def state() -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in changing.items()}
        return {"run": run, "generator": generator.get_state(), **parts}

    while run["epoch"] < epochs and run["epoch"] - run["best_epoch"] < patience:
        run["epoch"] += 1
        for batch in torch.randperm(len(labels.pos), generator=generator).split(batch_size):
            chosen = TeacherLabels(*(part[batch] for part in labels))
            values, gradients = _of_parts(network, coordinates, parts.of(batch), labels.pos.shape[1])
            loss = _loss(_squared_errors(chosen, turning(turns, chosen.pos), values, gradients), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held_out = float(_loss(_mean_errors(network, coordinates, stopping, turns), weights))
        if held_out < run["best"]:
            run |= {"best": held_out, "best_epoch": run["epoch"], "best_state": copy.deepcopy(network.state_dict())}
        if keep is not None:
            keep(state)
        if progress is not None:
            progress(run["epoch"], epochs, held_out)
    network.load_state_dict(run["best_state"])
    network.eval()
    return {"epochs": run["epoch"], "best_epoch": run["best_epoch"], "loss": run["best"]}


def errors(
    network: StudentNetwork, coordinates: InternalCoordinates, labels: TeacherLabels, turns: Sequence[Turn] = ()
) -> dict[str, list[float]]:
    """How far a student is from its teacher.

    Returns
    -------
    dict
        For each component: `r2`, the share of the variance of the teacher's values that it reproduces; `rmse`;
        `gradient_error`, the root mean square of the error of the gradient over that of the teacher's gradient; and, where
        there are `turns`, `turning_error`, the same of the change along these.
    """
    by_value, by_gradient, by_turns = _mean_errors(network, coordinates, labels, turns)
    variance, (size, along) = labels.values.var(0, correction=0), _mean_squares(labels, turns)
    found = {
        "r2": (1.0 - by_value / variance).tolist(),
        "rmse": by_value.sqrt().tolist(),
        "gradient_error": (by_gradient / size).sqrt().tolist(),
    }
    return found | ({"turning_error": (by_turns / along).sqrt().tolist()} if len(turns) else {})


def turning(turns: Sequence[Turn], pos: torch.Tensor) -> torch.Tensor:
    """How atoms move as a molecule turns about bonds, (F, T, n, 3) in angstrom per radian.

    Parameters
    ----------
    turns : list of (a, b, rows)
        T bonds.
    pos : (F, n, 3) tensor
        Angstrom.
    """
    moved = pos.new_zeros(len(turns), pos.shape[1], 1)
    for number, (_, _, rows) in enumerate(turns):
        moved[number, torch.as_tensor(rows)] = 1.0
    first, second = (torch.tensor([turn[side] for turn in turns], dtype=torch.int64) for side in (0, 1))
    axes = torch.nn.functional.normalize(pos[:, second] - pos[:, first], dim=2)
    arms = pos.unsqueeze(1) - pos[:, second].unsqueeze(2)
    return moved * torch.linalg.cross(axes.unsqueeze(2).expand_as(arms), arms)


def change_along(motions: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """The change (F, d, T) of a CV of gradients (F, d, n, 3) along motions (F, T, n, 3), see `turning`; differentiable."""
    return gradients.flatten(2) @ motions.flatten(2).transpose(1, 2)


def values_and_gradients(
    network: StudentNetwork, coordinates: InternalCoordinates, pos: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (F, d) and their gradients (F, d, n, 3) by the positions (F, n, 3), in the precision of the network."""
    parts = coordinates.with_gradients(pos.to(network.mean.dtype))
    with torch.no_grad():
        return _of_parts(network, coordinates, parts, pos.shape[1])


def _of_parts(
    network: StudentNetwork, coordinates: InternalCoordinates, parts: Sequence[torch.Tensor], n_atoms: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `values_and_gradients`, from what `coordinates.with_gradients` gave; differentiable in the network's weights."""
    inputs, cosines, sines, distances = parts
    values, slopes = network.with_slopes(inputs)
    return values, coordinates.gradient(slopes, cosines, sines, distances, n_atoms)


class _Parts:
    """The coordinates of frames and their gradients: kept, or where they are too many computed as they are asked for."""

    def __init__(self, coordinates: InternalCoordinates, pos: torch.Tensor) -> None:
        self._coordinates, self._pos = coordinates, pos
        self._kept: list[torch.Tensor] = []
        if len(pos) * sum(part[0].numel() for part in coordinates.with_gradients(pos[:1])) <= _KEPT:
            chunks = map(coordinates.with_gradients, pos.split(_EVALUATED))
            self._kept = [torch.cat(part) for part in zip(*chunks, strict=True)]

    def of(self, batch: torch.Tensor) -> Sequence[torch.Tensor]:
        """What `coordinates.with_gradients` gives of frames by number."""
        return [part[batch] for part in self._kept] or self._coordinates.with_gradients(self._pos[batch])


def _mean_squares(labels: TeacherLabels, turns: Sequence[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squares (d,) of the teacher's gradients, and of its change along turns."""
    size, along = torch.zeros(2, labels.values.shape[1])
    for pos, _, gradients in _chunks(labels):
        size += gradients.square().sum((0, 2, 3))
        along += change_along(turning(turns, pos), gradients).square().sum((0, 2))
    return size / len(labels.pos), along / len(labels.pos)


def _chunks(labels: TeacherLabels) -> Iterator[TeacherLabels]:
    return map(TeacherLabels._make, zip(*(part.split(_EVALUATED) for part in labels), strict=True))


def _squared_errors(
    labels: TeacherLabels, motions: torch.Tensor, values: torch.Tensor, gradients: torch.Tensor
) -> list[torch.Tensor]:
    """Mean squared errors (d,) of values, of gradients, and of the change along motions."""
    wrong = gradients - labels.gradients
    along = change_along(motions, wrong).square().sum(2)
    return [part.mean(0) for part in ((values - labels.values).square(), wrong.square().sum((2, 3)), along)]


def _mean_errors(
    network: StudentNetwork, coordinates: InternalCoordinates, labels: TeacherLabels, turns: Sequence[Turn]
) -> list[torch.Tensor]:
    """As `_squared_errors`, over many frames."""
    total: list[Any] = [0.0, 0.0, 0.0]
    for chosen in _chunks(labels):
        motions = turning(turns, chosen.pos.to(network.mean.dtype))
        found = _squared_errors(chosen, motions, *values_and_gradients(network, coordinates, chosen.pos))
        total = [sum_ + len(chosen.pos) * part for sum_, part in zip(total, found, strict=True)]
    return [part / len(labels.pos) for part in total]


def _loss(found: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([part * weight for part, weight in zip(found, weights, strict=True)]).sum(0).mean()
