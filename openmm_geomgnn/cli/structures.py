"""`geomgnn structures`: train networks on residues to tell classes of structures, with residue tokens and without."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from openmm_geomgnn.analysis.canvas import new_figure, save_figure
from openmm_geomgnn.analysis.report import write_report, write_summary
from openmm_geomgnn.cli.progress import bar, echo
from openmm_geomgnn.cli.settings.structures import Structures as Settings
from openmm_geomgnn.cli.tables import print_rows
from openmm_geomgnn.cli.trainings import NETWORKS, SPLITS, result_so_far, train_open, write_configuration, write_split
from openmm_geomgnn.cv.score_rows import RANDOM
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of, duration
from openmm_geomgnn.locks import locked
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.studies.latent.networks import Network
from openmm_geomgnn.studies.structures.embedding import embed_structures
from openmm_geomgnn.studies.structures.figures import standard_figures
from openmm_geomgnn.studies.structures.peptides import BuiltPeptides
from openmm_geomgnn.studies.structures.sources import TEST, LabelledStructure, read_folder, read_scope
from openmm_geomgnn.studies.structures.study import (
    Training,
    best_checkpoint,
    chance,
    confusions,
    load_classifier,
    plan_trainings,
    split_of,
)
from openmm_geomgnn.studies.structures.tables import AccuracyRow, accuracy_table, notes
from openmm_geomgnn.studies.training import trainer
from openmm_geomgnn.studies.training.folder import Result
from openmm_geomgnn.studies.training.parallel import check_parallel
from torchmdnet_ext.datasets.structures import Structures, read_structures

NUMBERS, REPORT, TOKENS = "structures.json", "report.html", "tokens"
FORMAT, VERSION = "openmm-geomgnn structures", 1
_MOST_CLASSES = 50  # up to which it is kept which are taken for which
Files = dict[tuple[str, int], Path]


def run_structures(settings: Settings) -> list[AccuracyRow]:
    """Embed and train what is not there yet; write and show the accuracies, with a report.

    Raises GeomGNNError if an optional package is missing, the structures do not suffice, or the folder holds others.
    """
    new_figure(1, 1, (1, 1))  # raises an error without matplotlib
    check_parallel(settings.workers, settings.scheduler)
    encoder = Encoder.load(settings.tokens.encoder)
    with locked(settings.output):
        files = _files(settings, encoder)
        structures = Structures(files[encoder.name, 0])
        trainings = plan_trainings(
            settings.networks,
            settings.network_settings,
            encoder.name,
            files,
            settings.seeds,
            settings.training,
            len(structures.classes),
            encoder.hidden_channels,
        )
        folders = _prepare(settings.output, trainings, structures)
        results = {one.name: result_so_far(folders[one.name]) for one in trainings}
        for _ in train_open(settings, folders, results):
            pass  # what each gives is looked at when all are trained
        rows = [_row(one, folders[one.name], results[one.name]) for one in trainings]
        _conclude(settings.output, rows, encoder.name, structures)
    return rows


def _sources(settings: Settings) -> list[LabelledStructure]:
    if settings.built is not None:
        return BuiltPeptides(**settings.built.model_dump(), seed=settings.seed).build()
    if settings.folder is not None:
        return read_folder(settings.folder, settings.seed)
    assert settings.scope is not None  # of the three one is given
    return read_scope(settings.scope)


def _files(settings: Settings, encoder: Encoder) -> Files:
    """Write the tokens that are missing; returns their files by encoder and seed.

    Raises GeomGNNError if tokens of other structures or encoders are there.
    """
    sources, spec = _sources(settings), settings.tokens.token_spec()
    networks = {(encoder.name, 0): Network(encoder.name, encoder)}
    for seed in settings.seeds:
        networks[RANDOM, seed] = Network(f"{RANDOM} {seed}", encoder.with_random_weights(seed), True)
    folder = settings.output / TOKENS
    files = {key: folder / f"{one.name}.safetensors".replace(" ", "-") for key, one in networks.items()}
    said = [(one.name, one.label, one.part) for one in sources], spec.to_metadata(), encoder.content_hash()
    built = None if settings.built is None else (settings.built.model_dump(), settings.seed)
    made_from = hashlib.sha256(json.dumps([said, built]).encode()).hexdigest()[:16]
    missing = {path: networks[key] for key, path in files.items() if not path.exists()}
    for path in files.values():
        if path not in missing and read_structures(path)[0]["made_from"] != made_from:
            raise GeomGNNError(f"{path} holds tokens of other structures or of another encoder. Give another output.")
    if missing:
        with bar("Embedding", "structures") as update:
            embed_structures(sources, missing, spec, made_from, update)
    left_out = read_structures(files[encoder.name, 0])[0]["left_out"]
    if left_out:
        name, reason = next(iter(left_out.items()))
        echo(f"{count_of(len(left_out), 'structure')} of {len(sources)} left out; the first, {name}: {reason}")
    return files


def _prepare(output: Path, trainings: Sequence[Training], structures: Structures) -> dict[str, Path]:
    """Write the split and the settings of all trainings; returns their folders.

    Raises GeomGNNError if settings of a training are there that differ, or a network cannot be made.
    """
    split = output / SPLITS / "split.npz"
    arrays = split_of(structures)
    for one in trainings:
        trainer.build({**one.settings, "log_dir": str(output)})
    split.parent.mkdir(parents=True, exist_ok=True)
    write_split(split, arrays)
    folders = {one.name: output / NETWORKS / one.name for one in trainings}
    for one in trainings:
        folders[one.name].mkdir(parents=True, exist_ok=True)
        write_configuration(folders[one.name], one.settings, split, "study")
    return folders


def _row(one: Training, folder: Path, result: Result) -> AccuracyRow:
    problem = "" if result.status == "trained" else result.reason
    counts: dict[str, np.ndarray] = {}
    if not problem:
        classifier = load_classifier(best_checkpoint(folder))
        counts = confusions(classifier, Structures(one.file, **one.settings["dataset_arg"]))
    found = {part: float(np.trace(table) / table.sum()) for part, table in counts.items()}
    kept = {part: table.tolist() for part, table in counts.items() if len(table) <= _MOST_CLASSES}
    return AccuracyRow(
        one.network, one.tokens, one.seed, found, result.best_loss, result.epochs, result.wall_seconds, problem, kept
    )


def _conclude(output: Path, rows: Sequence[AccuracyRow], encoder: str, structures: Structures) -> None:
    """Write and show the accuracies."""
    parts = sorted({part for part in structures.parts if part.startswith(TEST)})
    chances: Mapping[str, float] = {part: chance(structures, part) for part in parts}
    sizes = {part: structures.parts.count(part) for part in sorted(set(structures.parts))}
    said = list(notes(rows, encoder, parts))
    numbers = {"format": FORMAT, "version": VERSION, "classes": structures.classes, "structures": sizes}
    numbers |= {"commonest_class": chances, "rows": [asdict(row) for row in rows], "notes": said}
    write_summary(output / NUMBERS, numbers)
    head, *body = accuracy_table(rows, chances)
    spent = f"{count_of(len(rows), 'training')}, {duration(sum(row.wall_seconds for row in rows))} in all"
    pictures = []
    for name, title, caption, figure in standard_figures(rows, chances, structures.classes, encoder):
        save_figure(output / name, figure)
        pictures.append((title, caption, figure))
    described = [f"Structures: {', '.join(f'{number} of {part}' for part, number in sizes.items())}. {spent}."]
    table = [("Accuracy in percent, mean and standard error over seeds", [head, *body])]
    write_report(output / REPORT, "Classes of structures, with and without tokens", {}, pictures, [*said, *described], table)
    echo(f"accuracy in percent, mean and standard error over seeds; structures: {sizes}")
    print_rows(head, body)
    for note in said:
        echo(note)
    echo(f"{spent}; written to {output}: {NUMBERS}, {REPORT} and {count_of(len(pictures), 'picture')}")
