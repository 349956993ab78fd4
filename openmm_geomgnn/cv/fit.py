"""From trajectories to a collective variable: embed, mix, estimate, freeze."""

from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from openmm_geomgnn.cv.fit_data import Features, StoredPositions, check_stored, even_frames, evenly, features_of, in_memory
from openmm_geomgnn.cv.mixers import make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.stiffness import atomic_masses, stiffness
from openmm_geomgnn.cv.verdict import judge, timescale_notes
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman import (
    check_folds,
    cross_validate,
    fit_linear,
    hold_out,
    timescales,
    train_vampnet,
    transitions,
)
from openmm_geomgnn.koopman.vampnet import TEST_FRACTION, VALIDATION_FRACTION
from openmm_geomgnn.representation.bond_graph import record_centres
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.periodic import SelectedMolecule
from openmm_geomgnn.representation.reference import first_frame, read_reference
from openmm_geomgnn.representation.selection import as_topology, bonds_of, residue_table, select_atoms
from openmm_geomgnn.representation.spec import TokenSettings
from openmm_geomgnn.representation.store import Embeddings, encoder_identity
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows
from openmm_geomgnn.unfinished import Unfinished, fingerprint
from openmm_geomgnn.units import BOLTZMANN, NM_TO_ANGSTROM, did_you_mean

ESTIMATORS = ("linear", "vampnet")
FOLDS = 4  # of the cross-validation of a linear CV
PIECE_FRAMES = 250  # whose tokens are kept as one, about
RATE_FRAMES = 500  # at which the velocity of the features is sampled, for the softening
CENTRE_FRAMES = 20  # of each trajectory, in which the stereocentres are looked at


@dataclass(frozen=True)
class FitSettings(TokenSettings):
    """How a CV is fitted; see `mixers` and `koopman` for what each setting means.

    `lag_time`, `frame_interval` and `softening` are in picoseconds. `training` has arguments of `koopman.train_vampnet`.
    """

    lag_time: float
    frame_interval: float
    mixer: str = "none"
    mixer_settings: dict = field(default_factory=dict)
    estimator: str = "linear"
    components: int = 1
    pca: int | None = 50
    softening: float = 0.02
    reversible: bool = True
    training: dict = field(default_factory=dict)
    seed: int = 1

    def lag_frames(self):
        """The lag time in frames.

        Raises
        ------
        GeomGNNError
            If it is not a whole number of frames.
        """
        frames = self.lag_time / self.frame_interval
        if round(frames) < 1 or abs(frames - round(frames)) > 1e-3 * frames:
            nearest = max(1, round(frames)) * self.frame_interval
            raise GeomGNNError(
                f"The lag time of {self.lag_time:g} ps is not a whole number of frames, which are "
                f"{self.frame_interval:g} ps apart. The nearest possible lag time is {nearest:g} ps."
            )
        return round(frames)


def fit_cv(trajectories, topology, settings, progress=None, unfinished=None):
    """Fit a collective variable to trajectories of one molecule.

    Parameters
    ----------
    trajectories : list of mdtraj.Trajectory, or store.Embeddings
        Each a continuous piece of simulation. They are never stitched together. From a store, tokens are read instead of
        computed; its `token_settings` are those that `settings` must have.
    topology : openmm.app.Topology, mdtraj.Topology or path
    settings : FitSettings
    progress : callable, optional
        Called as progress(stage, done, total).
    unfinished : unfinished.Unfinished, optional
        Where tokens and the state of a VAMPnet's training are kept. A fit that was stopped goes on from what is there, and
        ends as it would have without a break.

    Returns
    -------
    CollectiveVariable
        Its `training_information` holds scores, the figures of `stiffness`, `timescales_ps` (None where a component has
        none, and `timescale_notes` why), the `transitions` of each component between its extremes in the data, and the
        `verdict` of `verdict.judge`.

    Raises
    ------
    GeomGNNError
        If settings are wrong or the data do not suffice; before the embedding where it can be known by then.
    """
    progress = progress or (lambda stage, done, total: None)
    unfinished = unfinished or Unfinished()
    _check_estimator(settings)
    if not trajectories:
        raise GeomGNNError("There are no trajectories to fit to: give one or more.")
    store = trajectories if isinstance(trajectories, Embeddings) else None
    lengths = store.lengths if store else [len(trajectory) for trajectory in trajectories]
    lag = check_data(lengths, settings)
    topology = as_topology(topology)
    atoms = select_atoms(topology, settings.selection)
    table = residue_table(topology, atoms)
    encoder = Encoder.load(settings.encoder)
    if store:
        check_stored(store, settings, encoder, topology, atoms, table)
        windows = make_windows(topology, atoms, settings.window, neighbours=store.settings["neighbours"])
    else:
        windows = fitted_windows(settings, topology, atoms, trajectories[0])
    tokenizer = Tokenizer(encoder, windows, settings.pooling)
    mixer = make_mixer(settings.mixer, windows.n_tokens, encoder.hidden_channels, **settings.mixer_settings)

    molecule = SelectedMolecule(topology, atoms, windows.contacts)
    if store:
        positions = [StoredPositions(store.positions(k)) for k in range(len(store))]
    else:
        positions = [molecule.positions(trajectory) for trajectory in trajectories]
    record_centres(bonds_of(table), [evenly([part], CENTRE_FRAMES) for part in positions])
    if store:
        tokens = [store.tokens(k) for k in range(len(store))]
        tokens = in_memory(tokens) if settings.estimator == "vampnet" else tokens
    else:
        tokens = _embed(tokenizer, positions, progress, unfinished)
    if settings.estimator == "linear":
        rates = None
        if settings.softening:
            rates = _feature_rates(tokenizer, mixer, positions, molecule, topology, settings, progress)
        mixer, model, scores = _fit_linear(mixer, tokens, rates, lag, settings)
    else:
        mixer, model, scores = _fit_vampnet(mixer, tokens, lag, settings, progress, unfinished)
    information = {
        **scores,
        "estimator": settings.estimator,
        "reversible": settings.reversible,
        "singular_values": [float(value) for value in model.singular_values],
        "dropped_directions": int(model.dropped),
        "frames": lengths,
        "frame_interval_ps": settings.frame_interval,
        "seed": settings.seed,
    }
    koopman = model.mean, model.projection, model.singular_values
    cv = make_cv(settings, encoder, mixer, koopman, table, windows, information)
    values = [np.concatenate([cv.project(chi).numpy() for chi in Features(cv.mixer, part).pieces()]) for part in tokens]
    facts = cv.training_information
    facts |= _slow_motions(values, lag, model.singular_values, settings.lag_time)
    facts |= stiffness(
        cv, topology, positions, settings.frame_interval, values, lambda done, total: progress("stiffness", done, total)
    )
    facts["verdict"] = judge(facts)
    return cv


def make_cv(settings, encoder, mixer, koopman, table, windows, training=None):
    """The CollectiveVariable of FitSettings; koopman: mean, projection and singular values. table: of the residues."""
    return CollectiveVariable(
        encoder,
        mixer,
        *koopman,
        table,
        selection=settings.selection,
        window=settings.window,
        context=settings.context,
        radius=settings.radius,
        neighbours=windows.neighbours,
        pooling=settings.pooling,
        lag_time=settings.lag_time,
        training=training,
    )


def _check_estimator(settings):
    if settings.estimator not in ESTIMATORS:
        raise GeomGNNError(
            f"Unknown estimator '{settings.estimator}'; the choices are {', '.join(ESTIMATORS)}."
            f"{did_you_mean(settings.estimator, ESTIMATORS)}"
        )
    if settings.estimator == "vampnet" and settings.mixer == "none":
        raise GeomGNNError("A VAMPnet needs a mixer with parameters: set mixer: mlp or mixer: attention.")
    if settings.estimator == "linear" and settings.mixer != "none":
        raise GeomGNNError("The linear estimator works on the tokens themselves: set mixer: none, or estimator: vampnet.")
    if settings.estimator == "linear" and settings.softening and not settings.reversible:
        raise GeomGNNError("softening is for the reversible estimator only: set reversible: true, or softening: 0.")


def _slow_motions(values, lag, singular_values, lag_time):
    """Timescales in ps, where the data show any, and how often the components went from one extreme to the other."""
    found = transitions(values, lag, singular_values)
    known, notes = timescale_notes(timescales(singular_values, lag_time), lag_time, found.separates_runs)
    return {"timescales_ps": known, "timescale_notes": notes, "transitions": found.counts.tolist()}


def check_data(lengths, settings):
    """The lag time in frames, if trajectories of these lengths, in frames, suffice for a fit with these FitSettings.

    Raises
    ------
    GeomGNNError
        If they do not, or the lag time is not a whole number of frames.
    """
    lag = settings.lag_frames()
    if settings.estimator == "linear":
        check_folds(lengths, lag, FOLDS)
    else:
        defaults = {"validation_fraction": VALIDATION_FRACTION, "test_fraction": TEST_FRACTION}
        hold_out(lengths, lag, [settings.training.get(name, value) for name, value in defaults.items()], seed=settings.seed)
    return lag


def fitted_windows(settings, topology, atoms, trajectory):
    """The `windows.Windows` of a fit whose first trajectory is `trajectory`."""
    reference = _reference(trajectory, topology, atoms, settings) if settings.window == "space" else None
    return make_windows(topology, atoms, settings.window, settings.context, settings.radius, reference)


def _reference(trajectory, topology, atoms, settings):
    """The structure that says which residues are near each other: a trajectory of one frame of the selected atoms."""
    if settings.reference is not None:
        return read_reference(settings.reference, topology, atoms, settings.selection)
    return first_frame(trajectory, topology, atoms)


def _embed(tokenizer, positions, progress, unfinished):
    """Tokens of each trajectory, in pieces that are kept as soon as they are done."""
    lengths = [len(pos) for pos in positions]
    advance = _counter(progress, "embed", sum(lengths))
    encoder = tokenizer.encoder
    # parts of one tensor, which the training of a VAMPnet needs joined: one copy, not two
    shape = tokenizer.windows.n_tokens, 4, encoder.hidden_channels
    tokens = torch.empty((sum(lengths), *shape), dtype=encoder.dtype).split(lengths)
    size = max(1, PIECE_FRAMES // tokenizer.frames_per_pass) * tokenizer.frames_per_pass
    graphs = tokenizer.rows, tokenizer.z, tokenizer.graph, tokenizer.own, tokenizer.token
    same = fingerprint(encoder_identity(encoder), *graphs, tokenizer.pooling, sum(lengths))
    for number, (part, pos) in enumerate(zip(tokens, positions, strict=True)):
        for start in range(0, len(pos), size):
            piece, name = pos[start : start + size], f"tokens.{number}.{start}"
            made_from = fingerprint(same, piece)
            found = unfinished.load(name, made_from)
            if found is None:
                found = {"tokens": tokenizer.embed(piece, advance, expected=sum(lengths))}
                unfinished.save(name, made_from, found)
            else:
                advance(len(piece))
            part[start : start + size] = found["tokens"]
    return list(tokens)


def _counter(progress, stage, total):
    """A callable that takes how many more frames are done and reports the sum as progress(stage, done, total)."""
    done = 0

    def advance(frames):
        nonlocal done
        done += frames
        progress(stage, done, total)

    advance(0)
    return advance


def _feature_rates(tokenizer, mixer, positions, molecule, topology, settings, progress=None):
    """(K, n) time derivatives per ps of the features at 300 K: at up to RATE_FRAMES frames, along drawn velocities.

    Central differences in double precision, which need no derivative of the features with respect to each atom.
    """
    frames = evenly(positions, RATE_FRAMES)
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(settings.seed), dtype=torch.float64)
    masses = atomic_masses(topology, molecule.atoms)
    velocities = noise * torch.sqrt(BOLTZMANN * 300.0 / masses)[:, None] * NM_TO_ANGSTROM
    encoder = Encoder.load(settings.encoder, torch.float64)
    double = Tokenizer(encoder, tokenizer.windows, tokenizer.pooling)
    step = 1e-4  # ps
    advance = _counter(progress or (lambda *where: None), "rates", 2 * len(frames))
    with torch.no_grad():
        after, before = (mixer(double.embed(frames + sign * step * velocities, advance)) for sign in (1, -1))
    return ((after - before) / (2 * step)).numpy()


def _fit_linear(mixer, tokens, rates, lag, settings):
    features = features_of(mixer, tokens)

    where = even_frames([len(part) for part in features], RATE_FRAMES)  # the frames that `rates` were taken at

    def fit(training, rates=rates):
        return fit_linear(
            training,
            lag,
            settings.components,
            settings.pca,
            settings.reversible,
            rates=rates,
            softening=settings.softening,
        )

    def training_rates(segments):
        """The rates at frames of these segments only: what is scored has no part in the softening either."""
        if rates is None:
            return {}
        inside = [torch.zeros(len(frames), dtype=torch.bool) for frames in where]
        for s in segments:
            inside[s.trajectory] |= (where[s.trajectory] >= s.start) & (where[s.trajectory] < s.stop)
        return {"rates": rates[torch.cat(inside).numpy()]}

    model = fit(features)
    folds = cross_validate(fit, features, lag, folds=FOLDS, reversible=settings.reversible, options=training_rates)
    scores = {
        "vamp2_training": 1.0 + float(np.sum(np.square(model.singular_values))),
        "vamp2_held_out": float(np.mean(folds)),
        "vamp2_held_out_std": float(np.std(folds, ddof=1)),
        "vamp2_held_out_error": float(np.std(folds, ddof=1) / np.sqrt(len(folds))),
        "pca": settings.pca,
        "softening_ps": settings.softening,
    }
    return mixer, model, scores


def _fit_vampnet(mixer, tokens, lag, settings, progress, unfinished):
    def report(epoch, epochs, train_score, validation_score):
        progress("train", epoch + 1, epochs)

    name, made_from = "vampnet", fingerprint(*tokens, *mixer.state_dict().values(), asdict(settings))
    result = train_vampnet(
        mixer,
        tokens,
        lag,
        settings.components,
        reversible=settings.reversible,
        seed=settings.seed,
        progress=report,
        resume=unfinished.load(name, made_from),
        keep=lambda state: unfinished.save_now_and_then(name, made_from, state),
        **settings.training,
    )
    scores = {
        "vamp2_training": 1.0 + float(np.sum(np.square(result.model.singular_values))),
        "vamp2_validation": _best(result.history),
        "vamp2_held_out": result.test_score,
        "vamp2_held_out_error": result.test_error,
        "history": {name: [None if x is None else float(x) for x in row] for name, row in result.history.items()},
        "best_epoch": int(result.best_epoch),
    }
    return result.lobe, result.model, scores


def _best(history):
    """The score that chose the epoch: no measure of how good the CV is, for being the best of many."""
    validation = [value for value in history["validation"] if value is not None]
    return float(max(validation)) if validation else None
