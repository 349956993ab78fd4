"""The study of transfer: every molecule is left out once, with every network, and what is scored already is kept."""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from openmm_geomgnn.aliases import StageProgress
from openmm_geomgnn.cv.fit_data import embed_positions
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.rules import lag_in_frames
from openmm_geomgnn.cv.score_features import TorsionFeatures
from openmm_geomgnn.cv.score_rows import TORSIONS
from openmm_geomgnn.cv.shared import make_shared_cv
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.jobs import run_jobs
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.store import encoder_identity
from openmm_geomgnn.studies.latent.networks import Network
from openmm_geomgnn.studies.transfer.scoring import (
    FITTED,
    LINEAR,
    TRANSFERRED,
    RowKey,
    Series,
    TransferRow,
    TransferSettings,
    as_job,
    expected_keys,
    train_lobe,
)
from openmm_geomgnn.unfinished import Unfinished, fingerprint

FORMAT, VERSION = "openmm-geomgnn transfer", 1
NO_MIXER, MADE_FROM = "none", "made_from"


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule with its trajectories.

    Attributes
    ----------
    name : str
    featurization : Featurization
        Of its windows, whatever the encoder.
    positions : list of (F, n, 3) tensors
        Whole molecules in angstrom, of each trajectory.
    interval : float
        ps between frames.
    """

    name: str
    featurization: Featurization
    positions: list[torch.Tensor]
    interval: float

    def series(self, parts: Sequence[Any], lagtime: float) -> Series:
        """Time series along its trajectories."""
        return Series(self.name, list(parts), lag_in_frames(lagtime, self.interval), self.interval)


@dataclass(frozen=True, eq=False)
class TransferStudy:
    """What is compared.

    Attributes
    ----------
    molecules : list of Molecule
    networks : list of Network
        See `studies.latent.networks.make_networks`. A network with random weights has the mixer's seed of its number, the
        others every one of `seeds`.
    settings : TransferSettings
    seeds : tuple of int
        Of mixers.
    """

    molecules: Sequence[Molecule]
    networks: Sequence[Network]
    settings: TransferSettings
    seeds: tuple[int, ...] = (1, 2, 3)

    def __post_init__(self) -> None:
        names = [one.name for one in self.molecules]
        if len(names) < 2 or len(set(names)) < len(names):
            raise GeomGNNError(f"Transfer takes two or more molecules of different names, but these are {', '.join(names)}.")

    def jobs(self, network: Network | None) -> list[RowKey]:
        """The jobs of a network, or of torsions for None: keys of which data and components mean nothing."""
        name = TORSIONS if network is None else network.name
        found = [RowKey(one.name, name, LINEAR, NO_MIXER, 0, None, 0) for one in self.molecules]
        if network is None:
            return found
        untrained = [one for one in self.networks if one.is_random]
        seeds = (1 + untrained.index(network),) if network.is_random else self.seeds
        return found + [
            RowKey(one.name, name, method, mixer, seed, None, 0)
            for mixer in self.settings.mixers
            for seed in seeds
            for method in (TRANSFERRED, FITTED)
            for one in self.molecules
        ]

    def made_from(self) -> str:
        """Hash of all that the rows depend on, beside their keys."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in ("components", "data", "mixers")}
        most = max(self.settings.components)
        positions = [part for one in self.molecules for part in one.positions]
        windows = [one.featurization.spec.to_metadata() for one in self.molecules]
        encoders = [(one.name, encoder_identity(one.encoder)) for one in self.networks]
        molecules = [(one.name, one.interval) for one in self.molecules]
        return fingerprint(settings, most, windows, encoders, molecules, *positions)


def score_transfer(
    study: TransferStudy,
    *,
    processes: int = 1,
    known: Sequence[TransferRow] = (),
    keep: Callable[[list[TransferRow]], None] = lambda rows: None,
    progress: StageProgress = lambda stage, done, total: None,
    unfinished: Callable[[Molecule, Network], Unfinished] = lambda molecule, network: Unfinished(),
) -> list[TransferRow]:
    """Score everything that is not known yet, network after network.

    Parameters
    ----------
    study : TransferStudy
    processes : int
        Jobs side by side.
    known : list of TransferRow
        Rows of earlier calls; those with a problem are made again.
    keep : callable
        Called with all rows so far whenever a job is done.
    progress : callable
        Called as progress("Embedding, NETWORK", frames done, all) and progress("Scores, NETWORK", jobs done, all).
    unfinished : callable
        Where the tokens of a molecule by a network are kept.

    Returns
    -------
    list of TransferRow
        What could not be scored is a row with a problem.
    """
    rows = {row.key: row for row in known if row.problem is None}
    planned = [(network, study.jobs(network)) for network in (None, *study.networks)]
    for network, jobs in planned:
        missing = [job for job in jobs if not all(key in rows for key in expected_keys(job, study.settings))]
        if not missing:
            continue
        calls = _calls(missing, _series(study, network, progress, unfinished), study.settings)
        what, done = f"Scores, {missing[0].features}", len(jobs) - len(missing)
        progress(what, done, len(jobs))
        with closing(_results(calls, min(processes, len(missing)))) as results:
            for found in results:
                rows |= {row.key: row for row in found}
                done += 1
                keep(list(rows.values()))
                progress(what, done, len(jobs))
    wanted = {key for _, jobs in planned for job in jobs for key in expected_keys(job, study.settings)}
    return [row for key, row in rows.items() if key in wanted]


def train_shared_cv(
    study: TransferStudy,
    components: int,
    *,
    progress: StageProgress = lambda stage, done, total: None,
    unfinished: Callable[[Molecule, Network], Unfinished] = lambda molecule, network: Unfinished(),
) -> CollectiveVariable:
    """A CV for any molecule like those of a study: the first network, mixer and seed, trained on all of them.

    Parameters
    ----------
    study : TransferStudy
    components : int
        Of the CV, at most those that are scored.
    progress, unfinished
        As of `score_transfer`; progress("Shared CV", epochs done, all).
    """
    network, settings = study.networks[0], study.settings
    series = _series(study, network, progress, unfinished)
    mixer = settings.mixer(settings.mixers[0], network.encoder.hidden_channels, study.seeds[0])

    def report(epoch: int, epochs: int, train_score: float, validation_score: float | None) -> None:
        progress("Shared CV", epoch + 1, epochs)

    shared = train_lobe(mixer, series, settings, report)
    model = shared.model.truncate(components)
    atoms = {one.name: SelectedAtoms.find(one.featurization.molecule) for one in study.molecules}
    training = {
        "frames": [length for one in series for length in one.lengths],
        "singular_values": model.singular_values.tolist(),
        "vamp2_validation": max(shared.history["validation"], default=None),
        "seed": study.seeds[0],
        MADE_FROM: study.made_from(),
    }
    spec = study.molecules[0].featurization.spec
    lobe = cast(Mixer, shared.lobe)
    return make_shared_cv(network.encoder, lobe, model, atoms, spec=spec, lagtime=settings.lagtime, training=training)


def _series(
    study: TransferStudy,
    network: Network | None,
    progress: StageProgress,
    unfinished: Callable[[Molecule, Network], Unfinished],
) -> list[Series]:
    """What a network makes of each molecule, or the torsions of each."""
    sizes = [sum(map(len, one.positions)) for one in study.molecules]
    found = []
    for number, molecule in enumerate(study.molecules):
        parts: Sequence[Any]
        if network is None:
            parts = TorsionFeatures(molecule.featurization).arrays(molecule.positions)
            if not parts:
                raise GeomGNNError(f"{molecule.name} has no torsions between the selected atoms. Leave it out.")
        else:
            what, before = f"Embedding, {network.name}", sum(sizes[:number])
            tokenizer = molecule.featurization.tokenizer_of(network.encoder)

            def report(stage: str, done: int, total: int, what: str = what, before: int = before) -> None:
                progress(what, before + done, sum(sizes))

            parts = embed_positions(tokenizer, molecule.positions, report, unfinished(molecule, network))
        found.append(molecule.series(parts, study.settings.lagtime))
    return found


def _results(calls: Iterator[tuple], processes: int) -> Generator[list[TransferRow], None, None]:
    """Yield the rows of each job: here, or side by side in other processes."""
    if processes == 1:
        yield from (as_job(*call) for call in calls)
        return
    with closing(run_jobs(_alone, calls, processes, _describe)) as results:
        yield from (found for _, found in results)


def _alone(*call: Any) -> list[TransferRow]:
    torch.set_num_threads(1)
    return as_job(*call)


def _calls(jobs: Sequence[RowKey], series: Sequence[Series], settings: TransferSettings) -> Iterator[tuple]:
    """Arguments of `scoring.as_job`, made when they are needed: they hold the time series."""
    by_name = {one.name: one for one in series}
    for job in jobs:
        own, others, mixer = by_name[job.molecule], [], None
        if job.method == LINEAR:
            own = own if job.features == TORSIONS else _features(own)
        else:
            mixer = settings.mixer(job.mixer, own.parts[0].shape[-1], job.seed).settings
        if job.method == TRANSFERRED:
            others = [one for one in series if one is not own]
        yield job.method, job.features, mixer, others, own, settings


def _features(tokens: Series) -> Series:
    """The invariants of all tokens side by side, (F, n): those of a linear CV."""
    _, n_tokens, _, channels = tokens.parts[0].shape
    mixer = make_mixer(NO_MIXER, n_tokens, channels)
    parts = [mixer(part.float()).double().numpy() for part in tokens.parts]
    return Series(tokens.name, parts, tokens.lag, tokens.interval)


def _describe(call: tuple) -> str:
    kind, features, _, _, series, _ = call
    return f"Scoring {series.name} ({features}, {kind})"


# ------------------------------------------------------------------------------------------------------------- the file


def load_transfer_rows(path: Path, made_from: str) -> list[TransferRow]:
    """The rows in a file of the same data and settings; none if it is of others, or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["version"], content["made_from"]) != (FORMAT, VERSION, made_from):
            return []
        return [TransferRow.from_dict(entry) for entry in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def save_transfer_rows(
    path: Path, made_from: str, rows: Sequence[TransferRow], summary: dict[str, Any] | None = None
) -> None:
    """Write the file of rows; summary: what they say together, once all are there."""
    content = {"format": FORMAT, "version": VERSION, "made_from": made_from, "summary": summary}
    content["rows"] = [row.as_dict() for row in rows]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
