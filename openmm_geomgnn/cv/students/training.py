"""Training of a student on the values and the gradients of its teacher: Sobolev training.

W. M. Czarnecki et al., Sobolev training for neural networks, NeurIPS 2017, arXiv 1706.04859.
"""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates
from openmm_geomgnn.cv.students.network import StudentNetwork

SMALLEST_SCALE = 0.02  # of a coordinate (angstrom, or cosine): what hardly moves in the data must not be blown up
_EVALUATED = 256  # frames at once


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
    `gradient_weight` times that of the gradient over the mean square of the teacher's gradients; the same of `stopping`
    decides when to stop. Adam, its rate falling along a cosine to zero.

    Parameters
    ----------
    network, coordinates : StudentNetwork, InternalCoordinates
    labels, stopping : TeacherLabels
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
    weights = 1.0 / labels.values.var(0), gradient_weight / labels.gradients.square().sum((2, 3)).mean(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
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
            values, gradients = values_and_gradients(network, coordinates, chosen.pos, training=True)
            loss = _loss(*_squared_errors(chosen, values, gradients), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        held_out = float(_loss(*_mean_errors(network, coordinates, stopping), weights))
        if held_out < run["best"]:
            run |= {"best": held_out, "best_epoch": run["epoch"], "best_state": copy.deepcopy(network.state_dict())}
        if keep is not None:
            keep(state)
        if progress is not None:
            progress(run["epoch"], epochs, held_out)
    network.load_state_dict(run["best_state"])
    network.eval()
    return {"epochs": run["epoch"], "best_epoch": run["best_epoch"], "loss": run["best"]}


def errors(network: StudentNetwork, coordinates: InternalCoordinates, labels: TeacherLabels) -> dict[str, list[float]]:
    """How far a student is from its teacher.

    Returns
    -------
    dict
        For each component: `r2`, the share of the variance of the teacher's values that it reproduces; `rmse`; and
        `gradient_error`, the root mean square of the error of the gradient over that of the teacher's gradient.
    """
    by_value, by_gradient = _mean_errors(network, coordinates, labels)
    variance, size = labels.values.var(0, correction=0), labels.gradients.square().sum((2, 3)).mean(0)
    return {
        "r2": (1.0 - by_value / variance).tolist(),
        "rmse": by_value.sqrt().tolist(),
        "gradient_error": (by_gradient / size).sqrt().tolist(),
    }


def values_and_gradients(
    network: StudentNetwork, coordinates: InternalCoordinates, pos: torch.Tensor, training: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (F, d) and their gradients (F, d, n, 3) by the positions (F, n, 3), in the precision of the network."""
    inputs, cosines, sines, distances = coordinates.with_gradients(pos.to(network.mean.dtype))
    inputs.requires_grad_(True)
    values = network(inputs)
    gradients = []
    for component in range(values.shape[1]):
        total = values[:, component].sum()
        (by_inputs,) = torch.autograd.grad(total, inputs, create_graph=training, retain_graph=True)
        gradients.append(coordinates.gradient(by_inputs, cosines, sines, distances, pos.shape[1]))
    return values if training else values.detach(), torch.stack(gradients, 1)


def _squared_errors(
    labels: TeacherLabels, values: torch.Tensor, gradients: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors (d,) of values and gradients."""
    by_gradient = (gradients - labels.gradients).square().sum((2, 3))
    return (values - labels.values).square().mean(0), by_gradient.mean(0)


def _mean_errors(
    network: StudentNetwork, coordinates: InternalCoordinates, labels: TeacherLabels
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors (d,) of values and gradients, over many frames."""
    total: list[Any] = [0.0, 0.0]
    for chunk in zip(*(part.split(_EVALUATED) for part in labels), strict=True):
        chosen = TeacherLabels(*chunk)
        found = _squared_errors(chosen, *values_and_gradients(network, coordinates, chosen.pos))
        total = [sum_ + len(chosen.pos) * part.detach() for sum_, part in zip(total, found, strict=True)]
    return total[0] / len(labels.pos), total[1] / len(labels.pos)


def _loss(by_value: torch.Tensor, by_gradient: torch.Tensor, weights: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return (by_value * weights[0] + by_gradient * weights[1]).mean()
