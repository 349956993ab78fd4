"""Held-out scores of VAMPnets: for each fold one is trained, side by side in processes of Dask."""

from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.score_rows import Case, OutOfFold, Scored, Split, of_segments, pairs_of
from openmm_geomgnn.koopman import KoopmanModel, VAMPNetResult, covariances, train_vampnet
from openmm_geomgnn.koopman.vamp import subspace_score


class Training(NamedTuple):
    """What one training is made from: settings of the mixer, tokens (F, R, 4, H) of each trajectory, options of training."""

    mixer: dict[str, Any]
    tokens: list[np.ndarray]
    pairs: Any
    lag: int
    components: int
    options: dict[str, Any]


def score_vampnet(
    mixer: Mixer,
    tokens: Sequence[Any],
    case: Case,
    split: Split,
    options: dict[str, Any],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Scored:
    """Cross-validated VAMP-2 score of a VAMPnet.

    The blocks by which the epoch is chosen are of the training data of each fold.

    Parameters
    ----------
    mixer : Mixer
        Untrained.
    tokens : list of (F, R, 4, H) arrays
    case : Case
    split : Split
    options : dict
        Arguments of `koopman.train_vampnet`.
    workers : int
        Processes; Dask is needed for more than one.
    progress : callable, optional
        Called as progress(done, total) after each training.
    """
    tokens = [np.asarray(part) for part in tokens]
    options = {**options, "test_fraction": 0.0, "reversible": split.reversible}

    def training(parts: list[np.ndarray], pairs: Any) -> Training:
        return Training(mixer.settings, parts, pairs, split.lag, case.components, options)

    jobs = [training(tokens, split.pairs)]
    jobs += [training(of_segments(tokens, seen), pairs_of(split, seen)) for seen, _ in split.folds]
    trained: dict[int, VAMPNetResult] = {}
    for number, found in _each(jobs, workers):
        trained[number] = _result(mixer, *found)
        if progress is not None:
            progress(len(trained), len(jobs))
    whole = trained[0]
    unseen = OutOfFold(split, [whole.transform(part)[:, :1] for part in tokens] if split.basins else [])
    scores = []
    for number, (seen, held) in enumerate(split.folds, start=1):
        values = [trained[number].transform(part) for part in of_segments(tokens, held)]
        scores.append(subspace_score(covariances(values, split.lag, None, split.reversible, pairs_of(split, held))))
        if unseen.needs(held):
            there = [trained[number].transform(part)[:, :1] for part in of_segments(tokens, seen)]
            unseen.add(seen, there, held, [x[:, :1] for x in values])
    return Scored(case, mixer.out_features, np.array(scores), unseen.gap(), whole.model, whole.lobe)


def train(job: Training) -> tuple[dict[str, torch.Tensor], KoopmanModel]:
    """Train one VAMPnet; returns the state of its mixer, and its model."""
    mixer = make_mixer(**job.mixer)
    tokens = [torch.as_tensor(part) for part in job.tokens]
    result = train_vampnet(mixer, tokens, job.lag, job.components, pairs=job.pairs, **job.options)
    return result.lobe.state_dict(), result.model


def _result(mixer: Mixer, state: dict[str, torch.Tensor], model: KoopmanModel) -> VAMPNetResult:
    lobe = make_mixer(**mixer.settings)
    lobe.load_state_dict(state)
    return VAMPNetResult(lobe.requires_grad_(False).eval(), model, {}, 0)


def _each(jobs: Sequence[Training], workers: int) -> Iterator[tuple[int, Any]]:
    """Yield (number, result) of each training as it ends."""
    if min(workers, len(jobs)) < 2 or find_spec("distributed") is None:
        for number, job in enumerate(jobs):
            yield number, train(job)
        return
    from distributed import Client, LocalCluster, as_completed

    settings = {"n_workers": min(workers, len(jobs)), "threads_per_worker": 1, "processes": True}
    # 50: of what Dask logs while its processes come and go, only what is critical
    with LocalCluster(**settings, dashboard_address=None, silence_logs=50) as cluster, Client(cluster) as client:
        numbers = {client.submit(_train_alone, job, pure=False): number for number, job in enumerate(jobs)}
        for future, found in as_completed(list(numbers), with_results=True):
            yield numbers[future], found


def _train_alone(job: Training) -> tuple[dict[str, torch.Tensor], KoopmanModel]:
    torch.set_num_threads(1)
    return train(job)
