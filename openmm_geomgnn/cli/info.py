"""`geomgnn info`: print what a file or folder is and what it contains."""

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openmm_geomgnn.cli import data
from openmm_geomgnn.cli.fitting import describe
from openmm_geomgnn.cli.names import COMPARISON, CV_FILE, FIRST_SEED, PROTOCOL, SUMMARY, UNBIASED
from openmm_geomgnn.cli.progress import echo
from openmm_geomgnn.cli.results import comparison_runs
from openmm_geomgnn.cli.run import NEEDED_TO_BIAS
from openmm_geomgnn.cli.run_folder import round_folders, wall_time
from openmm_geomgnn.cli.settings.yaml_files import load_protocol
from openmm_geomgnn.cv import file as cv_file
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.cv.shared import MOLECULES
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.sampling.checkpoint import find_checkpoint, load_checkpoint
from openmm_geomgnn.sampling.outputs import read_dcd
from torchmdnet_ext.checkpoints import READERS
from torchmdnet_ext.datasets.conformer_store import FORMAT as CONFORMERS
from torchmdnet_ext.datasets.conformer_store import is_store_folder
from torchmdnet_ext.tensor_files import DamagedFile, read_tensor_file

_MOST_RESIDUES = 12  # that are named
_TORCH_FILES = tuple(ending for ending in READERS if ending != ".safetensors")


def show_info(path: Path) -> None:
    """Print what a file or folder is and what it contains.

    Raises
    ------
    GeomGNNError
        If this package neither writes nor reads such a file, or it is damaged.
    """
    path = Path(path).expanduser()
    kind: Callable[[Path], None] | None
    if path.is_dir():
        kind = next((show for holds, show in _FOLDERS if holds(path)), None)
    elif path.suffix in _TORCH_FILES:
        kind = _show_encoder
    else:
        kind = _kind_of_file(path)
    if kind is None:
        raise GeomGNNError(
            f"{path} is none of what `geomgnn info` knows: a CV, an encoder, a store of embeddings or of conformers, or the "
            "output folder of a run."
        )
    kind(path)


def _kind_of_file(path: Path) -> Callable[[Path], None] | None:
    """Choose the function that describes a safetensors file by the name of its header."""
    found: dict[str, Callable[[Path], None]] = {
        "cv": _show_cv,
        "encoder": _show_encoder,
        CONFORMERS: data.show_info,
        "run": _show_checkpoint,
    }
    for name, show in found.items():
        try:
            header, _ = read_tensor_file(path, name)
        except DamagedFile as error:
            raise GeomGNNError(
                f"{path} cannot be read ({error}): it is damaged, or none of what `geomgnn info` knows (a CV, an encoder, a "
                "store of embeddings or of conformers, or the output folder of a run)."
            ) from error
        if header is not None:
            return show
    return None


def _line(name: str, value: object) -> None:
    echo(f"{name:<14} {value}")


def _show_cv(path: Path) -> None:
    cv: Any = CollectiveVariable.load(path)
    metadata, _ = cv_file.read(path)
    facts = cv.training_information
    student, shared = metadata["kind"] == "student", not cv.molecule
    what = "a student" if student else "a network for several molecules" if shared else "a network"
    _line("kind", f"collective variable, {what}, {count_of(cv.dimension, 'component')}")
    if student:
        teacher = facts.get("teacher", {})
        made = (f"{name.replace('_', ' ')} {teacher.get(name)}" for name in ("encoder", "mixer", "content_hash"))
        _line("teacher", ", ".join(made))
    else:
        _line("encoder", _encoder(cv.encoder))
        _line("mixer", ", ".join(f"{name} {value}" for name, value in cv.mixer.settings.items()).removeprefix("name "))
        spec = cv.spec
        extent = {"sequence": f", context {spec.context}", "space": f", radius {spec.radius:g} nm"}.get(spec.window, "")
        _line("windows", f"{spec.window}{extent}; pooling {spec.pooling}")
    if shared:
        _line("selection", cv.selection or "the default")
        _line("molecules", ", ".join(facts[MOLECULES]))
    else:
        atoms = sum(sum(elements.values()) for _, _, elements, *_ in cv.molecule)
        _line("selection", f"{cv.selection or 'the default'}: {atoms} atoms of {count_of(len(cv.molecule), 'residue')}")
        _line("molecule", _residues(cv.molecule))
    _line("lag", "unknown" if math.isnan(cv.lagtime) else f"{cv.lagtime:g} ps")
    if "frames" in facts:
        _line(
            "trained on", f"{sum(facts['frames'])} frames of {count_of(len(facts['frames']), 'trajectory', 'trajectories')}"
        )
    if all(name in facts for name in NEEDED_TO_BIAS):
        for line in describe(cv):
            echo(line)
    else:
        echo("It says nothing of its scores and its stiffness, so it cannot be biased by a protocol.")
    _line("hash", metadata["content_hash"])
    _line("file", f"{path}, {_megabytes(path)}")


def _show_encoder(path: Path) -> None:
    encoder = Encoder.load(path)
    _line("kind", f"encoder{'' if encoder.head is None else ' with its noise head'}")
    _line("network", _encoder(encoder))
    for name, value in encoder.training_information.items():
        _line(name, json.dumps(value) if isinstance(value, (dict, list)) else value)
    _line("file", f"{path}, {_megabytes(path)}")


def _encoder(encoder: Encoder) -> str:
    settings = encoder.settings
    layers, envelope = settings.get("num_layers"), "" if encoder.network.smooth_cutoff else ", no envelope"
    parameters = sum(parameter.numel() for parameter in encoder.network.parameters())
    return (
        f"{encoder.name} ({settings['model']}, {layers} layers of {encoder.hidden_channels} channels, cutoff "
        f"{encoder.cutoff:g} angstrom{envelope}, {parameters} parameters), hash {encoder.content_hash()}"
    )


def _show_embeddings(path: Path) -> None:
    store = Embeddings.open(path)
    settings = store.settings
    _line(
        "kind", f"store of embeddings: {sum(store.lengths)} frames of {count_of(len(store), 'trajectory', 'trajectories')}"
    )
    _line("encoder", f"{settings.get('encoder')}, hash {settings.get('encoder_hash')}")
    _line("selection", f"{settings['selection'] or 'the default'}: {len(settings['atoms'])} atoms")
    _line("molecule", _residues(settings["molecule"]))
    _line("windows", f"{settings['window']}; pooling {settings['pooling']}")
    _line("tokens", f"{settings['dtype']}, stride {settings.get('stride', 1)}")
    for k, entry in enumerate(store.trajectories):
        chunks = store.chunks(k)
        missing = sum(len(chunks[number]) for number in store.missing(k))
        state = f", {missing} not embedded yet: the same `geomgnn embed` continues" if missing else ""
        _line(f"trajectory {k}", f"{entry['frames']} frames of {entry['path']}{state}")
    _line("folder", f"{path}, {_megabytes(path)}")


def _show_checkpoint(path: Path) -> None:
    checkpoint = load_checkpoint(path)
    _line("kind", f"checkpoint of a run of {count_of(len(checkpoint.walkers), 'walker')}, at outer step {checkpoint.step}")
    for name, value in checkpoint.fingerprint.items():
        echo(f"  {name}: {value}")


def _show_run(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when it was begun
        protocol = load_protocol(path / PROTOCOL, {"output": str(path)})
    system, run = protocol.system, protocol.run
    _line("kind", "output folder of `geomgnn run`")
    _line("structures", ", ".join(structure.name for structure in system.structures))
    _line("system", f"{' + '.join(system.forcefield)}, {system.temperature:g} K, steps of {1000 * system.timestep:g} fs")
    if protocol.cv.file is None:
        numbers = [int(one.suffixes[-2][1:]) for one in (path / UNBIASED).glob("trajectory.*.dcd")]
        seeds = sum(number >= FIRST_SEED for number in numbers)
        wanted = f"{count_of(len(system.structures), 'run')} of {protocol.unbiased.length:g} ps"
        _line("unbiased", f"{len(numbers) - seeds} of {wanted} are done")
        if protocol.explore is not None:
            _line("from seeds", f"{count_of(seeds, 'run')} of {protocol.seeds.length:g} ps done so far")
        if protocol.rounds is not None:
            _line("rounds", f"{len(round_folders(path))} of at most {protocol.rounds.number} begun")
    if (path / CV_FILE).is_file():
        _line("CV", path / CV_FILE)
        for line in describe(CollectiveVariable.load(path / CV_FILE)):
            echo(f"  {line}")
    else:
        _line("CV", "not yet")
    checkpoint = find_checkpoint(path)
    done = 0.0 if checkpoint is None else load_checkpoint(checkpoint).step * protocol.schedule.bias_step
    _line("biased", f"{done:g} of {run.length:g} ps of each of {count_of(run.walkers, 'walker')}")
    frames = sum(len(read_dcd(trajectory)) for trajectory in comparison_runs(path))
    _line(COMPARISON, f"{frames} frames without a bias")
    seconds = wall_time(path)
    if not math.isnan(seconds):
        _line("time", f"{seconds:.0f} s of all sessions")
    if (path / SUMMARY).is_file():
        _line("report", path / "report.html")
    else:
        _line("report", "not yet: `geomgnn run` continues, `geomgnn report` analyses what is there")


_FOLDERS = (
    (lambda folder: (folder / PROTOCOL).is_file(), _show_run),
    (lambda folder: (folder / "zarr.json").is_file(), _show_embeddings),
    (is_store_folder, data.show_info),
)


def _residues(table: Any) -> str:
    names = [row[1] for row in table]
    more = f" and {len(names) - _MOST_RESIDUES} more" if len(names) > _MOST_RESIDUES else ""
    return " ".join(names[:_MOST_RESIDUES]) + more


def _megabytes(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.4g} MB"
