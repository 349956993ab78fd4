"""From a collective variable to a student of it, which costs a hundredth: ask the teacher, train, compare."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mdtraj
import numpy as np
import torch

from openmm_geomgnn.aliases import StageProgress, TopologyLike
from openmm_geomgnn.cv.base import Bound
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.output_map import OutputMap
from openmm_geomgnn.cv.stiffness import stiffness
from openmm_geomgnn.cv.students.augmentation import Moves
from openmm_geomgnn.cv.students.coordinates import InternalCoordinates, nearest_pairs, proper_torsions
from openmm_geomgnn.cv.students.cv import StudentCV, named_atoms
from openmm_geomgnn.cv.students.network import StudentNetwork
from openmm_geomgnn.cv.students.training import TeacherLabels, Turn, errors, label_frames, train
from openmm_geomgnn.cv.verdict import judge_student
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.koopman.validation import hold_out_blocks
from openmm_geomgnn.representation.bond_graph import record_centres
from openmm_geomgnn.representation.selection import as_topology, bonds_of, residue_table
from openmm_geomgnn.representation.windows import Windows
from openmm_geomgnn.unfinished import Unfinished, fingerprint

PARTS = (0.1, 0.1)  # of the frames, in whole blocks: one says when to stop, one is held out; the others are trained on
FEWEST_FRAMES = 50
PIECE = 500  # conformations whose labels are kept as one
HELD_OUT_FRAMES = 1000  # at most, for each of the figures that are reported
REPORTED = ("held_out", "displaced", "turned")  # frames that errors are reported on
# figures of the teacher
_INHERITED = (
    *("vamp2_training", "vamp2_held_out", "vamp2_held_out_error", "timescales_ps", "timescale_notes", "transitions"),
    *("in_basin_spread", "least_kernel_width", "kernel_widening", "targets", "r2_held_out", "noise"),
)
_COST_SECONDS = 0.3  # of turns, for each that is timed


@dataclass(frozen=True)
class DistillSettings:
    """How a student is made.

    hidden: units in each of its two layers. distances: at most so many; labels: conformations that the teacher labels, half
    of them frames (fewer if there are fewer), the others frames displaced by `displacement` (angstrom), turned about bonds,
    or both. The others are arguments of `students.training.train`.

    Examples
    --------
    >>> from importlib.resources import files
    >>> import mdtraj
    >>> structure = mdtraj.load(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> import numpy as np
    >>> noise = 0.01 * np.random.default_rng(0).normal(size=(100, structure.n_atoms, 3))
    >>> trajectory = mdtraj.Trajectory(structure.xyz + noise, structure.topology)  # in place of a simulation
    >>> from openmm_geomgnn.cv import FitSettings, fit_cv
    >>> settings = FitSettings(lagtime=0.2, frame_interval=0.1, softening=0.0)
    >>> cv = fit_cv([trajectory], structure.topology, settings)
    >>> from openmm_geomgnn.cv import distill
    >>> from openmm_geomgnn.cv.distillation import DistillSettings
    >>> settings = DistillSettings(hidden=8, distances=20, labels=60, epochs=2)  # far too few for a good student
    >>> student = distill(cv, structure.topology, [trajectory], settings)
    >>> student.bind(structure.topology, engine="eager").compute(trajectory).shape
    (100, 1)
    """

    hidden: int = 128
    distances: int = 2000
    labels: int = 16000
    displacement: float = 0.05
    gradient_weight: float = 1.0
    epochs: int = 80
    batch_size: int = 64
    learning_rate: float = 5e-3
    patience: int = 20
    seed: int = 1


def distill(
    cv: CollectiveVariable,
    topology: TopologyLike,
    trajectories: Sequence[mdtraj.Trajectory],
    settings: DistillSettings | None = None,
    progress: StageProgress | None = None,
    unfinished: Unfinished | None = None,
) -> StudentCV:
    """Train a student to reproduce a collective variable and its gradient; see the example at `DistillSettings`.

    Parameters
    ----------
    cv : CollectiveVariable
        The teacher.
    topology : openmm.app.Topology, mdtraj.Topology or path
    trajectories : list of mdtraj.Trajectory
        Frames of the molecule wherever the student shall be good; biased runs serve as well as unbiased ones.
    settings : DistillSettings, optional
    progress : callable, optional
        Called as progress(stage, done, total).
    unfinished : unfinished.Unfinished, optional
        Where labels and the state of the training are kept. A distillation that was stopped goes on from what is there, and
        ends as it would have without a break.

    Returns
    -------
    StudentCV
        Its `training_information["distillation"]` holds the errors on frames that were held out, on these displaced and
        turned (see `students.training.errors`), and the bound of |s|; `["teacher"]` says what it was made from.

    Raises
    ------
    GeomGNNError
        If the teacher is a student itself, the molecule is another one, or there are too few frames.
    """
    settings = settings or DistillSettings()
    progress = progress or (lambda stage, done, total: None)
    unfinished = unfinished or Unfinished()
    if isinstance(cv, StudentCV):
        raise GeomGNNError("This collective variable is a student already. Distil the one that it was made from.")
    topology = as_topology(topology)
    teacher = cv.bind(topology)
    teacher.output = OutputMap.identity(cv.dimension)  # the student learns the slow functions, and gets the map as it is
    atoms = named_atoms(topology, teacher.atoms)
    whole = [teacher.molecule.positions(trajectory) for trajectory in trajectories]
    table = residue_table(topology, teacher.atoms)
    record_centres(bonds_of(table), whole)
    for part in whole:
        teacher.check_handedness(part)
    gap = _frames_in_a_lag(cv, trajectories)
    split = _split([frames.numpy() for frames in whole], gap, settings.seed)
    bonds = _bonds(topology, teacher.atoms)
    coordinates = _coordinates(split[0], bonds, teacher, settings.distances)
    moves = [Moves(bonds, split[part], settings.displacement, settings.seed + part // 2) for part in (0, 2)]
    turns = moves[0].turnable
    labels = _ask_all(teacher, cv.content_hash(), _conformations(split, moves, settings), progress, unfinished)
    network, result = _trained(coordinates, labels, turns, cv.dimension, settings, progress, unfinished)
    facts = cv.training_information
    student = StudentCV(
        network,
        coordinates,
        atoms,
        table,
        selection=cv.selection,
        near=teacher.tokenizer.windows.contacts,
        lagtime=cv.lagtime,
        training={name: facts[name] for name in _INHERITED if name in facts},
        output=cv.output,
    )
    distillation = {
        **_quality(network, coordinates, labels, turns),
        "frames": [len(frames) for frames in whole],
        "largest": network.largest.tolist(),
        "epochs": result["epochs"],
        "best_epoch": result["best_epoch"],
        "seed": settings.seed,
    }
    student.training_information |= {"teacher": _teacher_facts(cv), "distillation": distillation}
    student.training_information["verdict"] = judge_student(facts, distillation)
    figures = stiffness(student, topology, whole, 1.0, progress=lambda done, total: progress("stiffness", done, total))
    # the spread within a basin takes frames at even times: it is that of the teacher
    student.training_information |= {name: figures[name] for name in ("rate_300K_per_ps", "range")}
    return student


def benchmark_evaluation(
    cv: CollectiveVariable, student: StudentCV, topology: TopologyLike, trajectory: mdtraj.Trajectory
) -> dict[str, float | None]:
    """Time one evaluation of value and gradient by the teacher and by its student.

    The teacher in plain PyTorch, the teacher with compiled kernels where there are some, and the student take turns on one
    frame of `trajectory`; the shortest turn of each counts.

    Returns
    -------
    dict
        {"eager": ms, "compiled": ms or None, "student": ms} of processor time.
    """
    bound = {"eager": cv.bind(topology, engine="eager"), "compiled": cv.bind(topology), "student": student.bind(topology)}
    if bound["compiled"].engine_name == "eager":
        del bound["compiled"]
    pos = bound["eager"].molecule.positions(trajectory[:1])[0].numpy()
    weights = np.ones(cv.dimension)

    def timed(cv: Bound, repeats: int) -> float:
        began = time.process_time()
        for _ in range(repeats):
            _, vjp = cv.value_and_vjp(pos)
            vjp(weights)
        return (time.process_time() - began) / repeats

    # the first evaluation compiles
    repeats = {name: 1 + int(0.02 / max(timed(other, 1) and timed(other, 3), 1e-6)) for name, other in bound.items()}
    turns: dict[str, list[float]] = {name: [] for name in bound}
    while min(sum(times) * repeats[name] for name, times in turns.items()) < _COST_SECONDS:
        for name, other in bound.items():
            turns[name].append(timed(other, repeats[name]))
    return {"compiled": None, **{name: 1000 * min(times) for name, times in turns.items()}}


def _frames_in_a_lag(cv: CollectiveVariable, trajectories: Sequence[mdtraj.Trajectory]) -> int:
    """How many frames apart those are that do not tell of each other: a lag time of the teacher.

    Formats without times claim frames of 1 ps: where the teacher was fitted to frames that are closer, these count.
    """
    if not cv.lagtime > 0:
        return 0
    known = cv.training_information.get("frame_interval_ps")
    steps = [np.median(np.diff(part.time)) for part in trajectories if len(part) > 1]
    interval = min([step for step in [*steps, known] if step is not None and step > 0], default=cv.lagtime)
    return math.ceil(cv.lagtime / interval - 1e-3)


def _split(parts: Sequence[np.ndarray], gap: int, seed: int) -> tuple[np.ndarray, ...]:
    """Frames (K, n, 3) to train on, to stop by and held out: whole blocks of each trajectory, `gap` frames apart."""
    lengths = [len(part) for part in parts]
    if sum(lengths) < FEWEST_FRAMES:
        raise GeomGNNError(
            f"There are {sum(lengths)} frames in all, too few to train a student and to say how good it is. Give at least "
            f"{FEWEST_FRAMES}, better some thousands."
        )
    split = hold_out_blocks(lengths, PARTS, gap, 1, blocks=1, seed=seed)
    if not all(split):
        raise GeomGNNError(
            f"The trajectories ({sum(lengths)} frames in {len(lengths)}, longest {max(lengths)}) are too short to hold out "
            f"frames that are a lag time of the teacher ({gap} frames) away from those that are trained on. Give longer or "
            "more trajectories."
        )
    return tuple(np.concatenate([segment.take(parts) for segment in part]) for part in split)


def _coordinates(frames: np.ndarray, bonds: Sequence[tuple[int, int]], teacher: Any, number: int) -> InternalCoordinates:
    """The `InternalCoordinates` that a student sees: torsions, and at most `number` distances that are short in `frames`."""
    distances = nearest_pairs(_evenly(frames, 100), bonds, _pairs(teacher.tokenizer.windows), number)
    coordinates = InternalCoordinates(proper_torsions(bonds, len(teacher.atoms)), distances)
    if len(coordinates) == 0:
        raise GeomGNNError(
            "The student would see nothing: its topology has no three bonds in a row, and distances is 0. Raise distances."
        )
    return coordinates


def _conformations(
    split: tuple[np.ndarray, ...], moves: Sequence[Moves], settings: DistillSettings
) -> dict[str, np.ndarray]:
    """What the teacher is asked about, (K, n, 3) each: to train on, to stop by, and what errors are reported on.

    moves: of the frames to train on, and of those held out.
    """
    training, stopping, held_out = split
    at_rest, unseen = min(len(training), settings.labels // 2), moves[1]
    made = _moved(moves[0], settings.labels - at_rest)
    return {
        "training": np.concatenate([_evenly(training, at_rest), made]),
        "stopping": _evenly(stopping, HELD_OUT_FRAMES),
        "held_out": _evenly(held_out, HELD_OUT_FRAMES),
        "displaced": unseen.displaced(_evenly(held_out, HELD_OUT_FRAMES // 2)),
        "turned": unseen.turned(min(len(held_out), HELD_OUT_FRAMES // 2)),
    }


def _moved(moves: Moves, number: int) -> np.ndarray:
    """(number, n, 3) frames that are displaced, turned, or both, a third each; displaced alone where nothing turns."""
    turned = moves.turned(2 * number // 3)
    half = len(turned) // 2
    displaced = moves.displaced(np.concatenate([moves.drawn(number - len(turned)), turned[half:]]))
    return np.concatenate([displaced, turned[:half]])


def _ask_all(
    teacher: Any, teacher_hash: str, sets: dict[str, np.ndarray], progress: StageProgress, unfinished: Unfinished
) -> dict[str, TeacherLabels]:
    """`TeacherLabels` of each set of conformations, asked for in pieces that are kept as soon as they are done."""
    done, total = 0, sum(map(len, sets.values()))

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        progress("labels", done, total)

    advance(0)
    labels = {}
    for name, conformations in sets.items():
        pieces = []
        for start in range(0, max(1, len(conformations)), PIECE):
            pos, part = conformations[start : start + PIECE], f"labels.{name}.{start}"
            made_from = fingerprint(teacher_hash, teacher.engine_name, pos)
            found = unfinished.load(part, made_from)
            if found is None:
                found = label_frames(teacher, pos, advance)
                unfinished.save(part, made_from, found)
            else:
                advance(len(pos))
            pieces.append(TeacherLabels(*found))
        labels[name] = TeacherLabels(*map(torch.cat, zip(*pieces, strict=True)))
    return labels


def _trained(
    coordinates: InternalCoordinates,
    labels: dict[str, TeacherLabels],
    turns: Sequence[Turn],
    dimension: int,
    settings: DistillSettings,
    progress: StageProgress,
    unfinished: Unfinished,
) -> tuple[StudentNetwork, dict[str, Any]]:
    """A student's network, in double precision, and what `students.training.train` says of its training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = StudentNetwork(len(coordinates), settings.hidden, dimension)
    seen = coordinates.torsions, coordinates.distances
    about = [turn[:2] for turn in turns]
    part, made_from = "student", fingerprint(*labels["training"], *labels["stopping"], *seen, about, asdict(settings))
    result = train(
        network,
        coordinates,
        labels["training"],
        labels["stopping"],
        turns=turns,
        gradient_weight=settings.gradient_weight,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        seed=settings.seed,
        progress=lambda epoch, epochs, loss: progress("train", epoch, epochs),
        resume=unfinished.load(part, made_from),
        keep=lambda state: unfinished.save_now_and_then(part, made_from, state),
    )
    return network.double(), result


def _teacher_facts(cv: CollectiveVariable) -> dict[str, Any]:
    """What a student's file says of its teacher."""
    return {
        "content_hash": cv.content_hash(),
        "encoder": cv.encoder.name,
        "mixer": cv.mixer.settings["name"],
        "rate_300K_per_ps": cv.training_information.get("rate_300K_per_ps"),
    }


def _quality(
    network: StudentNetwork, coordinates: InternalCoordinates, labels: dict[str, TeacherLabels], turns: Sequence[Turn]
) -> dict[str, Any]:
    """Errors on each set of frames that they are reported on, and how many frames it was trained on and stopped by."""
    return {
        **{name: errors(network, coordinates, labels[name], turns) for name in REPORTED if len(labels[name].pos) > 1},
        **{name: len(labels[name].pos) for name in ("training", "stopping")},
    }


def _evenly(frames: np.ndarray, number: int) -> np.ndarray:
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(number, len(frames))).round().astype(int))]


def _bonds(topology: mdtraj.Topology, atoms: np.ndarray) -> list[tuple[int, int]]:
    """Bonds between selected atoms, by their rows."""
    row = {int(index): k for k, index in enumerate(atoms)}
    ends = ((bond[0].index, bond[1].index) for bond in topology.bonds)
    return [(row[a], row[b]) for a, b in ends if a in row and b in row]


def _pairs(windows: Windows) -> np.ndarray:
    """(P, 2) pairs a < b of atoms that share a window: all that the teacher's value depends on."""
    pairs = np.sort(np.stack([windows.rows[side] for side in windows.pairs], axis=1), axis=1)
    return np.unique(pairs, axis=0)
