"""Training a lobe (a token mixer) on the VAMP-2 score: VAMPnets, and SRVs when reversible."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GeomGNNError
from .covariance import (
    Pairs,
    PairsLike,
    Weights,
    all_pairs,
    as_list,
    check_finite,
    check_lagtime,
    check_lengths,
    covariances,
    pair_weights,
)
from .loss import vamp2, whitened_probe
from .training import Trainer
from .validation import Segment, hold_out
from .vamp import KoopmanModel, check_n_components, vamp, vamp_score, with_sign
from .vampnet_settings import VAMPNetSettings

_EVALUATION_BATCH = 4096
_JACKKNIFE = 10

# one array or tensor (T, ...), or one for each trajectory
Tokens: TypeAlias = npt.ArrayLike | Tensor | Sequence[npt.ArrayLike | Tensor]


@dataclass(frozen=True)
class VAMPNetResult:
    """A trained lobe and the frozen projection of its outputs.

    Attributes
    ----------
    lobe : nn.Module
        Best weights, in evaluation mode and its own dtype.
    model : KoopmanModel
        The map chi -> psi, estimated in float64 over all the training data, with its sign fixed.
    history : dict
        One value per epoch: "loss" (mean over the batches), "train" and "validation" (VAMP-2 of the `n_components` leading
        functions, estimated on the training segments; "validation" scores them on the blocks that select the epoch and is
        empty without any).
    best_epoch : int
        Index into the history of the weights that were kept.
    test_score, test_error : float or None
        VAMP-2 of the same functions on blocks that had no part in the training, and its standard error (jackknife over
        parts of the blocks; None for a single short one). The best validation score overestimates that of fresh data,
        because it was selected.

    Examples
    --------
    >>> import torch
    >>> from openmm_geomgnn.koopman import train_vampnet
    >>> features = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)).cumsum(0)
    >>> lobe = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    >>> result = train_vampnet(lobe, features, 5, 1, epochs=2)
    >>> result.transform(features).shape
    (500, 1)
    """

    lobe: nn.Module
    model: KoopmanModel
    history: dict[str, list[float]]
    best_epoch: int
    test_score: float | None = None
    test_error: float | None = None

    def transform(self, tokens: npt.ArrayLike | Tensor) -> np.ndarray:
        """Evaluate psi (T, n_components) from tokens (T, ...), in float64 throughout."""
        double = copy.deepcopy(self.lobe).double()
        return self.model.transform(evaluate(double, torch.as_tensor(tokens)))


def train_vampnet(
    lobe: nn.Module,
    tokens: Tokens,
    lagtime: int,
    n_components: int,
    *,
    weights: Weights | None = None,
    pairs: PairsLike = None,
    progress: Callable[[int, int, float, float | None], None] | None = None,
    resume: dict | None = None,
    keep: Callable[[Callable[[], dict]], None] | None = None,
    **settings: Any,
) -> VAMPNetResult:
    """Train a copy of `lobe` so that its outputs span the slowest functions of the tokens.

    Each epoch passes over all pairs once in shuffled batches (AdamW on -VAMP-2), then estimates the projection on the
    training segments in float64 and scores it on the validation blocks. Training stops when that score has not risen
    for `patience` epochs, and the best weights are restored. They are scored once on the test blocks, which had no part in
    fitting or selection. The projection that is returned is estimated once over all the data.
    There is an example at `VAMPNetResult`.

    Parameters
    ----------
    lobe
        Module from tokens (B, ...) to chi (B, k), k >= n_components. It is not changed. A mixer without statistics gets
        them from the training segments.
    tokens
        (T, R, 4, H) float arrays or tensors, one for each trajectory (any shape (T, ...) that the lobe takes).
    lagtime
        In frames.
    n_components
        Number of components of psi.
    weights
        (T,) for each trajectory; see `covariances`.
    pairs
        `Pairs` for each trajectory, in place of all that are `lagtime` apart; see `rescaled_time_pairs`.
    progress
        Called after each epoch as progress(epoch, epochs, train_score, validation_score or None), epoch from 0.
    keep
        Called after each epoch with a function that returns the state of the training: dictionaries and lists of tensors
        and numbers.
    resume
        Such a state. Training continues from it to the result it would have had without interruption. Data and settings
        must be the same.
    settings
        Attributes of `VAMPNetSettings`, by name.

    Raises
    ------
    GeomGNNError
        If trajectories are not longer than the lag time, tokens are not finite (the message names trajectory and frame), the
        lobe has no parameters or fewer than `n_components` outputs, settings are out of range, or the loss is not finite.

    Mardt et al., Nat. Commun. 9, 5 (2018); Chen, Sidky & Ferguson, J. Chem. Phys. 150, 214114 (2019) for the reversible
    estimator.
    """
    how, data = VAMPNetSettings(**settings), _Data(tokens, lagtime, weights, pairs)
    like = first_trainable(lobe)
    training, validation, test = hold_out(data.lengths, lagtime, (how.validation_fraction, how.test_fraction), seed=how.seed)
    lobe = _prepared_copy(lobe, data, training, n_components, like)
    scale = _spread([s.take(data.tokens) for s in training]).to(like) if how.gradient_penalty else None
    loss_of = partial(_loss, lobe, data, scale=scale, settings=how)
    scores_of = partial(_Scores, lobe, data, training, n_components, how)
    trainer = Trainer(
        lobe,
        data.starts(training),
        loss_of,
        batch_size=how.batch_size,
        lr=how.lr,
        weight_decay=how.weight_decay,
        seed=how.seed,
    )
    trainer.train(
        lambda epoch: scores_of(epoch).training_and(validation),
        epochs=how.epochs,
        patience=how.patience,
        resume=resume,
        keep=keep,
        progress=progress,
    )
    scores, model = scores_of(trainer.best_epoch), _final_model(lobe, data, n_components, how)
    return VAMPNetResult(lobe, model, trainer.history, trainer.best_epoch, scores.of(test), scores.error(test))


class _Data:
    """Checked trajectories of tokens, joined in one tensor."""

    def __init__(self, tokens: Tokens, lagtime: int, weights: Weights | None, pairs: PairsLike):
        check_lagtime(lagtime)
        self.lagtime = lagtime
        self.tokens = [torch.as_tensor(t).detach() for t in as_list(tokens)]
        if not self.tokens:
            raise GeomGNNError(
                "There are no trajectories: pass a list of token arrays of shape (frames, tokens, 4, channels)."
            )
        for k, t in enumerate(self.tokens):
            if t.ndim < 2 or t.shape[1:] != self.tokens[0].shape[1:] or not t.is_floating_point():
                raise GeomGNNError(
                    f"The tokens of trajectory {k} are {t.dtype} of shape {tuple(t.shape)}: they must "
                    "be floating, of shape (frames, ...), and alike in all trajectories (trajectory "
                    f"0: {tuple(self.tokens[0].shape)})."
                )
        self.lengths = [len(t) for t in self.tokens]
        check_lengths(self.lengths, 0 if pairs is not None else lagtime)
        check_finite([t.cpu().numpy() for t in self.tokens])
        self.offsets = [0, *np.cumsum(self.lengths).tolist()]
        self.joined = _joined(self.tokens)
        self.tokens = list(self.joined.split(self.lengths))  # views: one copy of the data here, not two
        self.frame_weights: list[np.ndarray] | None = None
        self.weights: Tensor | None = None
        if weights is not None:
            pair_weights(self.lengths, lagtime, weights)  # raises when they do not fit
            self.frame_weights = [np.asarray(w, dtype=np.float64) for w in as_list(weights)]
            self.weights = torch.as_tensor(np.concatenate(self.frame_weights))
        self.given = None if pairs is None else cast(list[Pairs], all_pairs(self.lengths, lagtime, weights, pairs))
        if self.given is not None:
            moved = zip(self.given, self.offsets[:-1], strict=True)
            ends = [(first + offset, second + offset) for (first, second, _), offset in moved]
            self.first, self.second = (torch.as_tensor(np.concatenate(side)) for side in zip(*ends, strict=True))
            self.weights = torch.as_tensor(np.concatenate([one.weights for one in self.given]) * len(self.first))

    def starts(self, segments: Sequence[Segment]) -> Tensor:
        """Numbers of all pairs in these segments: of the first frame in the joined tensor, or of the pair where given."""
        if self.given is not None:
            inside = torch.zeros(len(self.first), dtype=torch.bool)
            both = torch.stack([self.first, self.second])
            for s in segments:
                start, stop = (edge + self.offsets[s.trajectory] for edge in (s.start, s.stop))
                inside |= ((both >= start) & (both < stop)).all(0)
            return torch.nonzero(inside)[:, 0]
        return torch.cat([torch.arange(s.start, s.stop - self.lagtime) + self.offsets[s.trajectory] for s in segments])

    def pairs(self, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """First and second frames (B, ...) of the pairs of these numbers, cast to `like`, and their weights (B,)."""
        ends = (index, index + self.lagtime) if self.given is None else (self.first[index], self.second[index])
        first, second = (self.joined[i].to(like) for i in ends)
        return first, second, None if self.weights is None else self.weights[index].to(like.device)

    def segment_weights(self, segments: Sequence[Segment]) -> list[np.ndarray] | None:
        """Weights of the frames of each segment; None where all weigh the same."""
        return None if self.frame_weights is None else [s.take(self.frame_weights) for s in segments]

    def segment_pairs(self, segments: Sequence[Segment]) -> PairsLike:
        """The given pairs in each segment; None where there are none."""
        return None if self.given is None else [s.take_pairs(self.given) for s in segments]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join all frames in one tensor; parts that were split from one tensor are not copied."""
    adjacent = len({part.untyped_storage().data_ptr() for part in parts}) == 1 and all(p.is_contiguous() for p in parts)
    ends = [part.data_ptr() + part.numel() * part.element_size() for part in parts]
    if adjacent and ends[:-1] == [part.data_ptr() for part in parts[1:]]:
        return parts[0].as_strided((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].stride())
    return torch.cat(list(parts))


def first_trainable(lobe: nn.Module) -> Tensor:
    """The parameter that sets the device and dtype of the tokens."""
    trainable = next((p for p in lobe.parameters() if p.requires_grad), None)
    if trainable is None:
        raise GeomGNNError("The lobe has no parameters to train: use fit_linear on its outputs.")
    return trainable


def _prepared_copy(lobe: nn.Module, data: _Data, training: Sequence[Segment], n_components: int, like: Tensor) -> nn.Module:
    """Copy the lobe for training, set statistics from the training segments if it has none, and check its outputs."""
    lobe = copy.deepcopy(lobe)
    set_statistics = getattr(lobe, "set_statistics", None)
    if set_statistics is not None and not lobe.has_statistics:
        set_statistics([s.take(data.tokens) for s in training])
    check_outputs(lobe, data.tokens[0][:2].to(like), n_components)
    return lobe


def check_outputs(lobe: nn.Module, tokens: Tensor, n_components: int) -> None:
    """Raise a GeomGNNError unless a lobe makes of tokens (B, ...) at least n_components numbers for each frame."""
    with torch.no_grad():
        chi = lobe(tokens)
    if chi.ndim != 2 or len(chi) != len(tokens):
        raise GeomGNNError(
            f"The lobe must return (frames, outputs) but returned {tuple(chi.shape)} for {len(tokens)} frames."
        )
    check_n_components(n_components, chi.shape[1], chi.shape[1])


def _loss(
    lobe: nn.Module,
    data: _Data,
    index: Tensor,
    generator: torch.Generator,
    *,
    scale: Tensor | None,
    settings: VAMPNetSettings,
) -> Tensor:
    """-VAMP-2 of the pairs that begin at `index`, and the penalty on its gradients by the tokens, in units of `scale`."""
    first, second, weights = data.pairs(index, next(lobe.parameters()))
    if scale is None:
        chi_0, chi_t = lobe(torch.cat([first, second])).tensor_split(2)
        return -vamp2(chi_0, chi_t, weights, settings.reversible, settings.ridge)
    first.requires_grad_()
    chi_0, chi_t = lobe(first), lobe(second)
    probe = whitened_probe(chi_0, weights, settings.ridge, generator)
    (gradient,) = torch.autograd.grad((chi_0 * probe.to(chi_0.dtype)).sum(), first, create_graph=True)
    stiffness = (gradient * scale).square().flatten(1).sum(1).double().mean() / chi_0.shape[1]
    return settings.gradient_penalty * stiffness - vamp2(chi_0, chi_t, weights, settings.reversible, settings.ridge)


def _spread(tokens: Sequence[Tensor]) -> Tensor:
    """Compute the standard deviation over all frames of each element of the tokens, (1, ...).

    The three components of a vector get that of its norm: a lobe sees norms, and the components turn with the molecule.
    """
    rows = [_norms(t.double()) for t in tokens]
    n = sum(len(r) for r in rows)
    mean = sum(r.sum(0) for r in rows) / n
    std = torch.as_tensor(sum((r - mean).square().sum(0) for r in rows) / n).sqrt()[None]
    return std.repeat_interleave(torch.tensor([1, 3]), dim=-2) if tokens[0].ndim == 4 else std


def _norms(tokens: Tensor) -> Tensor:
    if tokens.ndim != 4:
        return tokens
    return torch.stack([tokens[..., 0, :], tokens[..., 1:, :].norm(dim=-2)], dim=-2)


def evaluate(lobe: nn.Module, tokens: Tensor) -> np.ndarray:
    """Outputs chi (T, k) in float64, evaluated in the lobe's dtype on the lobe's device."""
    p = next(lobe.parameters())
    with torch.no_grad():
        return np.concatenate(
            [lobe(part.to(p.device, p.dtype)).double().cpu().numpy() for part in tokens.split(_EVALUATION_BATCH)]
        )


class _Scores:
    """VAMP-2 of the leading functions of a lobe's outputs chi, estimated on the training segments, there and elsewhere."""

    def __init__(
        self,
        lobe: nn.Module,
        data: _Data,
        training: Sequence[Segment],
        n_components: int,
        settings: VAMPNetSettings,
        epoch: int,
    ):
        chi = [evaluate(lobe, x) for x in data.tokens]
        if not all(np.isfinite(x).all() for x in chi):
            raise GeomGNNError(
                f"The network's outputs are not finite after epoch {epoch}: take a lower learning rate or a larger batch."
            )
        self._lagtime = data.lagtime
        self._moments = lambda segments: covariances(
            [s.take(chi) for s in segments],
            data.lagtime,
            data.segment_weights(segments),
            settings.reversible,
            data.segment_pairs(segments),
        )
        self._model = vamp(self._moments(training), epsilon=settings.epsilon).truncate(n_components)
        self.training = vamp_score(self._model)

    def training_and(self, segments: Sequence[Segment]) -> tuple[float, float | None]:
        """Scores of the training segments and of other segments."""
        return self.training, self.of(segments)

    def of(self, segments: Sequence[Segment]) -> float | None:
        """Score of held-out segments; None without any."""
        return vamp_score(self._model, self._moments(segments)) if segments else None

    def error(self, segments: Sequence[Segment]) -> float | None:
        """The jackknife's standard error of that score; None where the segments do not make two groups.

        One part of each segment is left out at a time, so that what remains still comes from all basins. Where segments
        are too short to be cut into parts of 1.5 lags, whole segments are left out in turn.
        """
        shortest = max(self._lagtime + 1, 3 * self._lagtime // 2)
        count = min(((s.stop - s.start) // shortest for s in segments), default=0)
        groups: list[Sequence[Segment]] = [[s] for s in segments]
        if count > 1:
            cut = [_cut(s, min(count, _JACKKNIFE)) for s in segments]
            groups = list(zip(*cut, strict=True))
        elif len(groups) > _JACKKNIFE:
            groups = [segments[k::_JACKKNIFE] for k in range(_JACKKNIFE)]
        n = len(groups)
        if n < 2:
            return None
        scores = np.array([self.of([s for other in groups if other is not group for s in other]) for group in groups])
        return float(np.sqrt((n - 1) / n * np.sum((scores - scores.mean()) ** 2)))


def _cut(segment: Segment, count: int) -> list[Segment]:
    edges = np.linspace(segment.start, segment.stop, count + 1).astype(int).tolist()
    return [Segment(segment.trajectory, *ends) for ends in zip(edges[:-1], edges[1:], strict=True)]


def _final_model(lobe: nn.Module, data: _Data, n_components: int, settings: VAMPNetSettings) -> KoopmanModel:
    double = copy.deepcopy(lobe).double()
    chi = [evaluate(double, x) for x in data.tokens]
    moments = covariances(chi, data.lagtime, data.frame_weights, settings.reversible, data.given)
    model = vamp(moments, n_components, settings.epsilon)
    return with_sign(model, np.concatenate([model.transform(x) for x in chi]))
