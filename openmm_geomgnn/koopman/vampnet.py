"""Training a lobe (a token mixer) on the VAMP-2 score: VAMPnets, and SRVs when reversible."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import GeomGNNError
from .covariance import check_finite, check_lag, check_lengths, covariances, pair_weights
from .loss import vamp2, whitened_probe
from .validation import Segment, hold_out
from .vamp import EPSILON, KoopmanModel, check_dim, vamp, vamp_score, with_sign

VALIDATION_FRACTION, TEST_FRACTION = 0.2, 0.1
_EVALUATION_BATCH = 4096
_JACKKNIFE = 10


@dataclass(frozen=True)
class VAMPNetResult:
    """A trained lobe and the frozen projection of its outputs.

    Attributes
    ----------
    lobe : nn.Module
        Best weights, in evaluation mode and its own dtype.
    model : KoopmanModel
        chi -> psi, estimated in float64 over all the training data, sign fixed.
    history : dict
        "loss" (mean over the batches), "train" and "validation" (VAMP-2 of the `dim` leading functions, estimated on
        the training segments; "validation" scores them on the blocks that choose the epoch and is empty without any): one
        value for each epoch.
    best_epoch : int
        Index into the history of the weights that were kept.
    test_score, test_error : float or None
        VAMP-2 of the same functions, after training, on blocks that had no part in it, and its standard error (jackknife
        over parts of the blocks; None for a single short one). The best of the validation scores is not that of fresh
        data: it was chosen.
    """

    lobe: nn.Module
    model: KoopmanModel
    history: dict[str, list[float]]
    best_epoch: int
    test_score: float | None = None
    test_error: float | None = None

    def transform(self, tokens) -> np.ndarray:
        """psi (T, dim) of tokens (T, ...), in float64 throughout."""
        double = copy.deepcopy(self.lobe).double()
        return self.model.transform(_evaluate(double, torch.as_tensor(tokens)))


def train_vampnet(lobe: nn.Module, tokens, lag: int, dim: int, *, reversible: bool = True, epochs: int = 100,
                  batch_size: int = 1000, lr: float = 1e-3, weight_decay: float = 1e-4,
                  validation_fraction: float = VALIDATION_FRACTION, test_fraction: float = TEST_FRACTION,
                  patience: int = 10, seed: int = 0, gradient_penalty: float = 0.0, ridge: float = 1e-6, weights=None,
                  epsilon: float = EPSILON,
                  progress: Callable[[int, int, float, float | None], None] | None = None,
                  resume: dict | None = None, keep: Callable[[Callable[[], dict]], None] | None = None) -> VAMPNetResult:
    """Train a copy of `lobe` so that its outputs span the slowest functions of the tokens.

    Each epoch passes over all pairs once in shuffled batches (AdamW on -VAMP-2), then estimates the projection on the
    training segments in float64 and scores it on the validation blocks. Training stops when that score has not risen
    for `patience` epochs, and the best weights are restored. They are scored once on the test blocks, which nothing was
    fitted to or chosen by. The projection that is returned is estimated once over all the data.

    Parameters
    ----------
    lobe
        tokens (B, ...) -> chi (B, k), k >= dim. It is not changed. A mixer without statistics gets them from the
        training segments.
    tokens
        (T, R, 4, H) float arrays or tensors, one for each trajectory (any shape (T, ...) that the lobe takes).
    lag
        In frames.
    dim
        Components of psi.
    reversible
        True gives a state-free reversible VAMPnet, False a VAMPnet.
    validation_fraction
        Of the frames, held out as whole contiguous blocks (see `hold_out`) to choose the epoch by; 0 trains for all
        `epochs` and keeps the last weights.
    test_fraction
        Of the frames, held out for the final score; 0 gives none.
    patience
        Epochs without a better validation score before stopping.
    seed
        Of the split, the batches and the penalty's probes; torch's own generators are not touched.
    gradient_penalty
        Weight of the mean of |d psi_i / d z|^2 over the whitened outputs, with z the tokens in units of their own
        spread: a softer CV heats a biased simulation less. Zero switches it off; try 0.05 to 0.5 and watch the
        test score.
    ridge
        Relative; see `vamp2`.
    weights
        (T,) for each trajectory; see `covariances`.
    epsilon
        Relative cutoff of the whitening in the returned model; see `vamp`.
    progress
        Called after each epoch as progress(epoch, epochs, train_score, validation_score or None), epoch from 0.
    keep
        Called after each epoch with a function that returns the state of the training: dictionaries and lists of tensors
        and numbers.
    resume
        Such a state. The training goes on from it, and ends as it would have without a break. Data and settings must be
        the same.

    Raises
    ------
    GeomGNNError
        For trajectories no longer than the lag, tokens with NaN (trajectory and frame are named), a lobe without
        parameters or with fewer than `dim` outputs, bad settings, or a loss that is not finite.

    Mardt et al., Nat. Commun. 9, 5 (2018); Chen, Sidky & Ferguson, J. Chem. Phys. 150, 214114 (2019) for the
    reversible one.
    """
    data = _Data(tokens, lag, weights)
    _check_settings(epochs=epochs, batch_size=batch_size, patience=patience)
    if not (lr > 0 and weight_decay >= 0 and gradient_penalty >= 0 and ridge > 0):
        raise GeomGNNError("lr and ridge must be positive, weight_decay and gradient_penalty not negative, but they "
                           f"were lr={lr!r}, ridge={ridge!r}, weight_decay={weight_decay!r}, "
                           f"gradient_penalty={gradient_penalty!r}.")
    parameters = [p for p in lobe.parameters() if p.requires_grad]
    if not parameters:
        raise GeomGNNError("The lobe has no parameters to train: use fit_linear on its outputs.")
    device, dtype = parameters[0].device, parameters[0].dtype
    training, validation, test = hold_out(data.lengths, lag, (validation_fraction, test_fraction), seed=seed)
    lobe = copy.deepcopy(lobe)
    if hasattr(lobe, "set_statistics") and not lobe.has_statistics:
        lobe.set_statistics([s.take(data.tokens) for s in training])
    _check_outputs(lobe, data.tokens[0][:2].to(device, dtype), dim)
    scale = _spread([s.take(data.tokens) for s in training]).to(device, dtype) if gradient_penalty else None

    optimiser = torch.optim.AdamW([p for p in lobe.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(seed)
    first_frames = torch.cat([torch.arange(s.start, s.stop - lag) + data.offsets[s.trajectory] for s in training])
    run = _Run(lobe, optimiser, generator)
    loss_of = partial(_loss, lobe, scale=scale, reversible=reversible, gradient_penalty=gradient_penalty, ridge=ridge,
                      generator=generator)

    def scores_of(epoch):
        return _Scores([_evaluate(lobe, x) for x in data.tokens], data, training, lag, dim, reversible, epsilon, epoch)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # for a lobe with dropout
        if resume is not None:
            run.go_on_from(resume)
        while run.epoch < epochs and run.epoch - run.best_epoch <= patience:
            shuffled = first_frames[torch.randperm(len(first_frames), generator=generator)]
            batches = shuffled.tensor_split(max(1, round(len(shuffled) / batch_size)))
            run.history["loss"].append(_epoch(lobe, data, batches, lag, optimiser, loss_of, run.epoch))
            lobe.eval()
            scores = scores_of(run.epoch)
            rated = scores.training, scores.of(validation)
            run.note(*rated)
            if keep is not None:
                keep(run.state)
            if progress is not None:
                progress(run.epoch - 1, epochs, *rated)
    lobe.load_state_dict(run.best)
    lobe.eval()
    scores = scores_of(run.best_epoch)
    return VAMPNetResult(lobe, _final_model(lobe, data, lag, dim, reversible, epsilon), run.history, run.best_epoch,
                         scores.of(test), scores.error(test))


class _Run:
    """All that changes from epoch to epoch."""

    def __init__(self, lobe: nn.Module, optimiser: torch.optim.Optimizer, generator: torch.Generator):
        self._lobe, self._optimiser, self._generator = lobe, optimiser, generator
        self.epoch = 0  # that comes next
        self.best_epoch = 0
        self.best: dict | None = None
        self.history: dict[str, list[float]] = {"loss": [], "train": [], "validation": []}

    def note(self, train_score: float, validation_score: float | None) -> None:
        """The scores after an epoch; its weights are kept if they are the best, or if nothing chooses."""
        earlier = self.history["validation"]
        if validation_score is None or not earlier or validation_score > earlier[self.best_epoch]:
            self.best_epoch, self.best = self.epoch, copy.deepcopy(self._lobe.state_dict())
        self.history["train"].append(train_score)
        if validation_score is not None:
            self.history["validation"].append(validation_score)
        self.epoch += 1

    def state(self) -> dict:
        device = next(self._lobe.parameters()).device
        return {
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "history": self.history,
            "lobe": self._lobe.state_dict(),
            "best": self.best,
            "optimiser": self._optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "default_generator": torch.default_generator.get_state(),
            "device_generator": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        }

    def go_on_from(self, state: dict) -> None:
        self.epoch, self.best_epoch, self.history = state["epoch"], state["best_epoch"], state["history"]
        self.best = state["best"]
        self._lobe.load_state_dict(state["lobe"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"])
        torch.default_generator.set_state(state["default_generator"])
        if state["device_generator"] is not None:
            torch.cuda.set_rng_state(state["device_generator"], next(self._lobe.parameters()).device)


class _Data:
    """The checked trajectories of tokens and where their frames lie in one joined tensor."""

    def __init__(self, tokens, lag: int, weights):
        check_lag(lag)
        self.tokens = [torch.as_tensor(t).detach() for t in (tokens if isinstance(tokens, (list, tuple)) else [tokens])]
        if not self.tokens:
            raise GeomGNNError("There are no trajectories: pass a list of token arrays of shape (frames, tokens, 4, "
                               "channels).")
        for k, t in enumerate(self.tokens):
            if t.ndim < 2 or t.shape[1:] != self.tokens[0].shape[1:] or not t.is_floating_point():
                raise GeomGNNError(f"The tokens of trajectory {k} are {t.dtype} of shape {tuple(t.shape)}: they must "
                                   "be floating, of shape (frames, ...), and alike in all trajectories (trajectory "
                                   f"0: {tuple(self.tokens[0].shape)}).")
        self.lengths = [len(t) for t in self.tokens]
        check_lengths(self.lengths, lag)
        check_finite([t.cpu().numpy() for t in self.tokens])
        self.offsets = [0, *np.cumsum(self.lengths).tolist()]
        self.joined = _joined(self.tokens)
        self.tokens = list(self.joined.split(self.lengths))  # views: one copy of the data here, not two
        self.frame_weights = None
        self.weights = None
        if weights is not None:
            pair_weights(self.lengths, lag, weights)  # raises when they do not fit
            weights = list(weights) if isinstance(weights, (list, tuple)) else [weights]
            self.frame_weights = [np.asarray(w, dtype=np.float64) for w in weights]
            self.weights = torch.as_tensor(np.concatenate(self.frame_weights))

    def segment_weights(self, segments: Sequence[Segment]) -> list[np.ndarray] | None:
        return None if self.frame_weights is None else [s.take(self.frame_weights) for s in segments]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All frames as one tensor; parts that were split from one are not copied."""
    adjacent = len({part.untyped_storage().data_ptr() for part in parts}) == 1 and all(p.is_contiguous() for p in parts)
    ends = [part.data_ptr() + part.numel() * part.element_size() for part in parts]
    if adjacent and ends[:-1] == [part.data_ptr() for part in parts[1:]]:
        return parts[0].as_strided((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].stride())
    return torch.cat(list(parts))


def _check_settings(**settings) -> None:
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GeomGNNError(f"{name} must be a whole number of at least 1 but was {value!r}.")


def _check_outputs(lobe: nn.Module, tokens: Tensor, dim: int) -> None:
    with torch.no_grad():
        chi = lobe(tokens)
    if chi.ndim != 2 or len(chi) != len(tokens):
        raise GeomGNNError(f"The lobe must return (frames, outputs) but returned {tuple(chi.shape)} for "
                           f"{len(tokens)} frames.")
    check_dim(dim, chi.shape[1], chi.shape[1])


def _epoch(lobe, data: _Data, batches: Sequence[Tensor], lag: int, optimiser, loss_of, epoch: int) -> float:
    """One step for each batch of first frames; the mean loss."""
    lobe.train()
    p = next(lobe.parameters())
    total = 0.0
    for index in batches:
        first, second = (data.joined[i].to(p.device, p.dtype) for i in (index, index + lag))
        weights = None if data.weights is None else data.weights[index].to(p.device)
        loss = loss_of(first, second, weights)
        if not torch.isfinite(loss):
            raise GeomGNNError(f"The loss became {loss.item()} in epoch {epoch}: take a lower learning rate or a "
                               "larger batch, and check that the tokens are of ordinary size.")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.item()
    return total / len(batches)


def _loss(lobe, first, second, weights, *, scale, reversible, gradient_penalty, ridge, generator) -> Tensor:
    if not gradient_penalty:
        chi_0, chi_t = lobe(torch.cat([first, second])).tensor_split(2)
        return -vamp2(chi_0, chi_t, weights, reversible, ridge)
    first.requires_grad_()
    chi_0, chi_t = lobe(first), lobe(second)
    probe = whitened_probe(chi_0, weights, ridge, generator)
    (gradient,) = torch.autograd.grad((chi_0 * probe.to(chi_0.dtype)).sum(), first, create_graph=True)
    stiffness = (gradient * scale).square().flatten(1).sum(1).double().mean() / chi_0.shape[1]
    return gradient_penalty * stiffness - vamp2(chi_0, chi_t, weights, reversible, ridge)


def _spread(tokens: Sequence[Tensor]) -> Tensor:
    """Standard deviation over all frames of each element of the tokens, (1, ...).

    The three rows of a vector get that of its norm: a lobe sees norms, and the components also turn with the
    molecule.
    """
    rows = [_norms(t.double()) for t in tokens]
    n = sum(len(r) for r in rows)
    mean = sum(r.sum(0) for r in rows) / n
    std = torch.sqrt(sum((r - mean).square().sum(0) for r in rows) / n)[None]
    return std.repeat_interleave(torch.tensor([1, 3]), dim=-2) if tokens[0].ndim == 4 else std


def _norms(tokens: Tensor) -> Tensor:
    if tokens.ndim != 4:
        return tokens
    return torch.stack([tokens[..., 0, :], tokens[..., 1:, :].norm(dim=-2)], dim=-2)


def _evaluate(lobe: nn.Module, tokens: Tensor) -> np.ndarray:
    """chi (T, k) float64, evaluated in the lobe's dtype on the lobe's device."""
    p = next(lobe.parameters())
    with torch.no_grad():
        return np.concatenate([lobe(part.to(p.device, p.dtype)).double().cpu().numpy()
                               for part in tokens.split(_EVALUATION_BATCH)])


class _Scores:
    """VAMP-2 of the leading functions of a lobe's outputs chi, estimated on the training segments, there and elsewhere."""

    def __init__(self, chi, data: _Data, training, lag, dim, reversible, epsilon, epoch):
        if not all(np.isfinite(x).all() for x in chi):
            raise GeomGNNError(f"The network's outputs are not finite after epoch {epoch}: take a lower learning rate or "
                               "a larger batch.")
        self._lag = lag
        self._moments = lambda segments: covariances([s.take(chi) for s in segments], lag, data.segment_weights(segments),
                                                     reversible)
        self._model = vamp(self._moments(training), epsilon=epsilon).truncate(dim)
        self.training = vamp_score(self._model)

    def of(self, segments) -> float | None:
        """The score of held-out segments; None without any."""
        return vamp_score(self._model, self._moments(segments)) if segments else None

    def error(self, segments) -> float | None:
        """Its standard error, by a jackknife: one part of each segment is left out at a time, or, where they are too short
        to be cut into parts of 1.5 lags, segments in turn. None where neither leaves two groups.

        Without a part of each, the rest still is of all basins, which a segment by itself need not be.
        """
        shortest = max(self._lag + 1, 3 * self._lag // 2)
        count = min(((s.stop - s.start) // shortest for s in segments), default=0)
        groups = [[s] for s in segments]
        if count > 1:
            cut = [_cut(s, min(count, _JACKKNIFE)) for s in segments]
            groups = [list(group) for group in zip(*cut, strict=True)]
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


def _final_model(lobe, data: _Data, lag, dim, reversible, epsilon) -> KoopmanModel:
    double = copy.deepcopy(lobe).double()
    chi = [_evaluate(double, x) for x in data.tokens]
    model = vamp(covariances(chi, lag, data.frame_weights, reversible), dim, epsilon)
    return with_sign(model, np.concatenate([model.transform(x) for x in chi]))
