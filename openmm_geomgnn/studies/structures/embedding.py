"""From labelled structures to files of residue tokens and C-alpha atoms, which `torchmd-train` reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.featurization import Featurization, SelectedAtoms
from openmm_geomgnn.representation.selection import same_residue
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.studies.latent.networks import Network
from openmm_geomgnn.studies.structures.sources import LabelledStructure
from openmm_geomgnn.units import NM_TO_ANGSTROM
from torchmdnet_ext.datasets.structures import write_structures

KNOWN = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)  # fmt: skip
ALPHA_CARBON = "CA"


def embed_structures(
    structures: Sequence[LabelledStructure],
    networks: Mapping[Path, Network],
    spec: TokenSpec,
    made_from: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the tokens of structures by each network to a file of its own.

    A residue is kept if it has a C-alpha atom among the selected atoms; caps, ligands and solvent are not residues. What
    cannot be embedded is left out of all files alike, which say why.

    Parameters
    ----------
    structures : list of LabelledStructure
    networks : dict of path to Network
        The file of each.
    spec : TokenSpec
        Windows by space are made from each structure itself.
    made_from : str
        A fingerprint of everything that the files depend on, kept in them.
    progress : callable, optional
        Called with the number of structures done, and of all.

    Raises
    ------
    GeomGNNError
        If no structure can be embedded.
    """
    kept: list[LabelledStructure] = []
    left_out: dict[str, str] = {}
    rows: list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]] = []
    for done, one in enumerate(structures):
        try:
            rows.append(_embed(one, list(networks.values()), spec))
            kept.append(one)
        except GeomGNNError as error:
            left_out[one.name] = str(error)
        if progress is not None:
            progress(done + 1, len(structures))
    if not kept:
        raise GeomGNNError(f"No structure can be embedded; the first, {next(iter(left_out.items()))}.")
    classes = sorted({one.label for one in structures})
    common: dict[str, np.ndarray] = {
        "residue": np.concatenate([row[0] for row in rows]),
        "pos": np.concatenate([row[1] for row in rows]),
        "ptr": np.cumsum([0, *(len(row[0]) for row in rows)], dtype=np.int64),
        "label": np.array([classes.index(one.label) for one in kept], dtype=np.int64),
    }
    for k, (path, network) in enumerate(networks.items()):
        encoder = {"name": network.encoder.name, "hash": network.encoder.content_hash(), "spec": spec.to_metadata()}
        header: dict[str, Any] = {"classes": classes, "residues": KNOWN, "names": [one.name for one in kept]}
        header |= {"parts": [one.part for one in kept], "encoder": encoder, "made_from": made_from}
        header["left_out"] = left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        write_structures(path, {**common, "tokens": np.concatenate([row[2][k] for row in rows])}, header)


def _embed(
    one: LabelledStructure, networks: Sequence[Network], spec: TokenSpec
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Kinds (R,), C-alpha atoms (R, 3) in angstrom and, for each network, tokens (R, 4, H) of a structure."""
    structure = one.load()
    selected = SelectedAtoms.find(structure.topology, spec.selection)
    featurization = Featurization(selected, spec, networks[0].encoder, structure=lambda: structure)
    chosen: list[int] = []
    kinds: list[int] = []
    alpha: list[int] = []
    order: dict[int, int] = {}  # residue -> its token
    for index in selected.atoms:
        atom = structure.topology.atom(int(index))
        token = order.setdefault(atom.residue.index, len(order))
        if atom.name == ALPHA_CARBON and atom.element.symbol == "C" and token not in chosen:
            name = same_residue(atom.residue.name)
            chosen.append(token)
            kinds.append(KNOWN.index(name) + 1 if name in KNOWN else 0)
            alpha.append(int(index))
    if not chosen:
        raise GeomGNNError(f"{one.name} has no C-alpha atom among the selected atoms.")
    positions = featurization.molecule.positions(structure)
    tokens = [featurization.tokenizer_of(network.encoder).embed(positions)[0, chosen].numpy() for network in networks]
    pos = (NM_TO_ANGSTROM * structure.xyz[0, alpha]).astype(np.float32)
    return np.array(kinds, dtype=np.uint8), pos, tokens
