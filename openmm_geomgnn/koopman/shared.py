"""Training one lobe on several systems: the VAMP-2 scores of all, each with its own covariances, are maximised together."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GeomGNNError
from .covariance import Covariances, check_lagtime, check_lengths, covariances
from .loss import vamp2
from .training import Trainer
from .validation import Segment, hold_out
from .vamp import KoopmanModel, vamp, vamp_score
from .vampnet import check_outputs, evaluate, first_trainable
from .vampnet_settings import VAMPNetSettings


@dataclass(frozen=True)
class SharedLobe:
    """A lobe that was trained on several systems, and one projection of its outputs for all.

    Attributes
    ----------
    lobe : nn.Module
        Best weights, in evaluation mode.
    model : KoopmanModel
        Of the covariances within the systems, averaged over them: what moves slowly in the average system. Its mean is the
        average of theirs; on a new system psi has an offset of its own.
    history : dict
        By epoch: "loss", "train" and "validation", means over the systems.
    best_epoch : int
    """

    lobe: nn.Module
    model: KoopmanModel
    history: dict[str, list[float]]
    best_epoch: int

    def outputs(self, tokens: npt.ArrayLike | Tensor) -> np.ndarray:
        """Evaluate chi (T, k) from tokens (T, ...), evaluated in the lobe's dtype."""
        return evaluate(self.lobe, torch.as_tensor(tokens))

    def transform(self, tokens: npt.ArrayLike | Tensor) -> np.ndarray:
        """Evaluate psi (T, n_components) from tokens (T, ...)."""
        return self.model.transform(self.outputs(tokens))


def train_shared_lobe(
    lobe: nn.Module,
    systems: Sequence[Sequence[npt.ArrayLike | Tensor]],
    lagtimes: Sequence[int],
    n_components: int,
    *,
    progress: Callable[[int, int, float, float | None], None] | None = None,
    resume: dict | None = None,
    keep: Callable[[Callable[[], dict]], None] | None = None,
    **settings: Any,
) -> SharedLobe:
    """Train a copy of `lobe` so that, in every system, its outputs span the slowest functions.

    The loss of a step is the mean over the systems of -VAMP-2 of a batch of pairs of each. Means differ between systems far
    more than within one, so covariances of all together would make "which system is it" the slowest function. Every system
    counts alike, however long its trajectories are. The epoch is the best by the mean score of validation blocks of all
    systems, as in `train_vampnet`.

    Parameters
    ----------
    lobe
        Module from tokens (B, ...) to chi (B, k), k >= n_components, whatever the number of tokens is. It is not changed. A
        mixer without statistics gets them from the training segments of all systems.
    systems
        For each system its trajectories of tokens (T, R, 4, H); R may differ between systems.
    lagtimes
        Of each system, in its frames.
    n_components
        Of psi.
    progress, resume, keep
        As of `train_vampnet`.
    settings
        Attributes of `VAMPNetSettings`, by name; `batch_size` is that of each system. There is no gradient penalty and no
        test fraction: the test of a shared lobe is a system that it has not seen.

    Raises
    ------
    GeomGNNError
        If there is no system, trajectories are too short, the lobe has fewer outputs than `n_components`, settings are out
        of range, or the loss is not finite.

    Examples
    --------
    >>> import torch
    >>> from openmm_geomgnn.koopman import train_shared_lobe
    >>> generator = torch.Generator().manual_seed(0)
    >>> systems = [[torch.randn(400, 4, generator=generator).cumsum(0)] for _ in range(2)]
    >>> lobe = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> shared = train_shared_lobe(lobe, systems, [5, 5], 1, epochs=2)
    >>> shared.transform(systems[0][0]).shape
    (400, 1)
    """
    how = replace(VAMPNetSettings(**settings), test_fraction=0.0)
    if how.gradient_penalty:
        raise GeomGNNError("A lobe of several systems is trained without gradient_penalty: leave it out.")
    if not systems:
        raise GeomGNNError("There are no systems to train on: give the trajectories of one or more.")
    like = first_trainable(lobe)
    data = [_System(parts, lag, how) for parts, lag in zip(systems, lagtimes, strict=True)]
    lobe = copy.deepcopy(lobe)
    set_statistics = getattr(lobe, "set_statistics", None)
    if set_statistics is not None and not lobe.has_statistics:
        set_statistics([part for one in data for part in one.training_tokens()])
    for one in data:
        check_outputs(lobe, one.tokens[0][:2].to(like), n_components)

    def loss_of(_: Tensor, generator: torch.Generator) -> Tensor:
        return -torch.stack([one.score(lobe, how, generator) for one in data]).mean()

    # a step draws pairs of every system, so what an epoch passes over are steps
    steps = max(1, math.ceil(np.mean([len(one.starts) for one in data]) / how.batch_size))
    trainer = Trainer(
        lobe, torch.arange(steps), loss_of, batch_size=1, lr=how.lr, weight_decay=how.weight_decay, seed=how.seed
    )
    trainer.train(
        lambda epoch: _scores(lobe, data, n_components, how),
        epochs=how.epochs,
        patience=how.patience,
        resume=resume,
        keep=keep,
        progress=progress,
    )
    average = _average([one.moments(one.outputs(lobe), one.whole, how) for one in data])
    return SharedLobe(lobe, vamp(average, n_components, how.epsilon), trainer.history, trainer.best_epoch)


class _System:
    """The trajectories of one system: tokens, and which pairs of frames are trained on."""

    def __init__(self, parts: Sequence[npt.ArrayLike | Tensor], lagtime: int, how: VAMPNetSettings):
        check_lagtime(lagtime)
        self.lagtime = lagtime
        self.tokens = [torch.as_tensor(part) for part in parts]
        lengths = [len(part) for part in self.tokens]
        check_lengths(lengths, lagtime)
        self.whole = [Segment(k, 0, length) for k, length in enumerate(lengths)]
        self.training, self.validation = hold_out(lengths, lagtime, how.validation_fraction, seed=how.seed)
        self.joined = torch.cat(self.tokens)
        offsets = np.cumsum([0, *lengths]).tolist()
        ranges = [torch.arange(s.start, s.stop - lagtime) + offsets[s.trajectory] for s in self.training]
        self.starts = torch.cat(ranges)

    def training_tokens(self) -> list[Tensor]:
        return [s.take(self.tokens) for s in self.training]

    def score(self, lobe: nn.Module, how: VAMPNetSettings, generator: torch.Generator) -> Tensor:
        """VAMP-2 of a batch of pairs, drawn without replacement."""
        chosen = self.starts[torch.randperm(len(self.starts), generator=generator)[: how.batch_size]]
        like = next(lobe.parameters())
        both = self.joined[torch.cat([chosen, chosen + self.lagtime])].to(like)
        chi_0, chi_t = lobe(both).tensor_split(2)
        return vamp2(chi_0, chi_t, None, how.reversible, how.ridge)

    def outputs(self, lobe: nn.Module) -> list[np.ndarray]:
        chi = [evaluate(lobe, part) for part in self.tokens]
        if not all(np.isfinite(part).all() for part in chi):
            raise GeomGNNError("The network's outputs are not finite: take a lower learning rate or a larger batch.")
        return chi

    def moments(self, chi: Sequence[np.ndarray], segments: Sequence[Segment], how: VAMPNetSettings) -> Covariances:
        return covariances([s.take(chi) for s in segments], self.lagtime, None, how.reversible)


def _scores(lobe: nn.Module, data: Sequence[_System], n_components: int, how: VAMPNetSettings) -> tuple[float, float | None]:
    """Scores of the leading functions of each system on training segments and validation blocks, means over systems."""
    training, validation = [], []
    for one in data:
        chi = one.outputs(lobe)
        model = vamp(one.moments(chi, one.training, how), epsilon=how.epsilon).truncate(n_components)
        training.append(vamp_score(model))
        if one.validation:
            validation.append(vamp_score(model, one.moments(chi, one.validation, how)))
    return float(np.mean(training)), float(np.mean(validation)) if validation else None


def _average(moments: Sequence[Covariances]) -> Covariances:
    """Means and covariances about the own mean of each system, averaged over the systems."""
    names = ("mean_0", "mean_t", "c00", "c0t", "ctt")
    means = {name: np.mean([getattr(one, name) for one in moments], axis=0) for name in names}
    pairs = sum(one.n_pairs for one in moments)
    return replace(moments[0], **means, n_pairs=pairs, effective_pairs=float(pairs))
