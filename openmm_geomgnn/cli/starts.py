"""Structures from which the simulations of a protocol start: those that are given, and seeds of what was explored."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openmm_geomgnn.cli.fitting import fit_settings
from openmm_geomgnn.cli.molecule import walker_spec
from openmm_geomgnn.cli.names import EXPLORE, SEEDS, STARTS_FILE
from openmm_geomgnn.cli.progress import echo, progress_bars
from openmm_geomgnn.cli.run_folder import first_structure
from openmm_geomgnn.cli.settings.protocol import Protocol
from openmm_geomgnn.cv.fit import make_fit_mixer
from openmm_geomgnn.cv.fit_data import featurize
from openmm_geomgnn.files import atomic_write
from openmm_geomgnn.formatting import count_of
from openmm_geomgnn.representation.selection import as_topology
from openmm_geomgnn.sampling.explore import Explored, explore
from openmm_geomgnn.sampling.seeds import NAME, choose_seeds, make_seeds, read_seeds, write_seeds
from openmm_geomgnn.sampling.systems import load_structure

STAGES = {"exploring": ("Exploration", "pieces")}


def explore_molecule(protocol: Protocol) -> list[Explored]:
    """Look for other states from the structures of a protocol, once; [] if the protocol does not ask for it."""
    section = protocol.explore
    if section is None or not section.ways_at_first:
        return []
    return _explored(protocol, section.settings(protocol.seed, ways=section.ways_at_first))


def explore_along(protocol: Protocol, cv_file: Path, sigma: tuple[float, ...] | None) -> list[Explored]:
    """Look for other states by OPES_EXPLORE on a CV, once, from the structures of a protocol and up to its bias's barrier.

    sigma: widths of the kernels of its bias in units of the CV; None measures them.
    """
    section: Any = protocol.explore
    given = {"ways": ("opes",), "barrier": protocol.bias.barrier, "cv": str(cv_file), "sigma": sigma}
    return _explored(protocol, section.settings(protocol.seed, **given), protocol.every)


def _explored(protocol: Protocol, settings: Any, every: int = 1) -> list[Explored]:
    specs = [walker_spec(protocol, k, every=every) for k in range(len(protocol.system.structures))]
    with progress_bars(STAGES) as progress:
        found = explore(specs, settings, protocol.output / EXPLORE, protocol.run.walkers, progress)
    for one in found:
        for note in one.notes:
            echo(f"{one.name}: {note}")
    return found


def seed_structures(protocol: Protocol, explored: Sequence[Explored]) -> list[Path]:
    """Files of the seeds in the folder of a run, made if they are not there; [] where nothing was explored."""
    if not explored:
        return []
    folder = protocol.output / SEEDS
    if not (folder / NAME).is_file():
        topology, _ = first_structure(protocol)
        number = protocol.seeds.number
        chosen = choose_seeds(token_features(protocol, explored), explored, number)
        known = [load_structure(path)[1] for path in protocol.system.structures]
        seeds, notes = make_seeds(walker_spec(protocol), explored, chosen, known)
        write_seeds(folder, topology, seeds, notes)
    found, frames = read_seeds(folder), sum(map(len, explored))
    echo(f"Seeds: {count_of(len(found), 'minimum', 'minima')} of {count_of(frames, 'frame')} that were explored")
    return [folder / entry["file"] for entry in found]


def token_features(protocol: Protocol, explored: Sequence[Explored]) -> list[np.ndarray]:
    """Residue tokens (F, n) of the frames of each piece, without what depends on how the molecule is turned."""
    topology = as_topology(first_structure(protocol)[0])
    trajectories = [one.trajectory(topology) for one in explored]
    settings = fit_settings(protocol.cv, protocol.unbiased.frame_interval, protocol.seed)
    settings = replace(settings, mixer="none", mixer_settings={})  # one that is trained has no weights yet
    featurization = featurize(trajectories, topology, settings)
    mixer = make_fit_mixer(settings, featurization)
    with torch.no_grad():
        tokens = [featurization.tokenizer.embed(featurization.molecule.positions(part)) for part in trajectories]
        return [mixer(part).numpy() for part in tokens]


def write_starts(protocol: Protocol, structures: Sequence[Path]) -> None:
    """Note the structures from which the biased run starts."""
    with atomic_write(protocol.output / STARTS_FILE) as temporary:
        names = [_inside(path, protocol.output) for path in structures]
        temporary.write_text(json.dumps({"structures": names}, indent=1) + "\n", encoding="utf-8")


def _inside(path: Path, folder: Path) -> str:
    """A path relative to a folder that it is in, which may be moved; else as it is."""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def with_starts(protocol: Protocol) -> Protocol:
    """The protocol whose biased run starts from the structures that were noted; itself where there are none."""
    path = protocol.output / STARTS_FILE
    if not path.is_file():
        return protocol
    names = json.loads(path.read_text(encoding="utf-8"))["structures"]
    return starting_from(protocol, [protocol.output / name for name in names])


def starting_from(protocol: Protocol, structures: Sequence[Path]) -> Protocol:
    """The protocol with other structures."""
    return protocol.model_copy(update={"system": protocol.system.model_copy(update={"structures": tuple(structures)})})
