"""Sources of conformers for pre-training, by the name that `source:` has in YAML."""

from dataclasses import fields

from pydantic import TypeAdapter, ValidationError

from openmm_geomgnn.conformers.sources.base import Source
from openmm_geomgnn.conformers.sources.ccd import CCD
from openmm_geomgnn.conformers.sources.denali import Denali
from openmm_geomgnn.conformers.sources.hdf5 import HDF5
from openmm_geomgnn.conformers.sources.nucleotides import Nucleotides
from openmm_geomgnn.conformers.sources.pcqm4mv2 import PCQM4Mv2
from openmm_geomgnn.conformers.sources.peptides import Peptides
from openmm_geomgnn.conformers.sources.qm9 import QM9
from openmm_geomgnn.conformers.sources.sdf import SDF
from openmm_geomgnn.conformers.sources.smiles import Smiles
from openmm_geomgnn.conformers.sources.torchmdnet import TorchMDNet
from openmm_geomgnn.conformers.sources.trajectory import Trajectory
from openmm_geomgnn.conformers.sources.xyz import XYZ
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

SOURCES: dict[str, type[Source]] = {
    source.name: source
    for source in (Smiles, QM9, SDF, XYZ, HDF5, Trajectory, Peptides, Nucleotides, CCD, PCQM4Mv2, Denali, TorchMDNet)
}


def source_from(settings: dict) -> Source:
    """Make a source from its YAML block: `source` and the source's own settings.

    Raises a GeomGNNError that names the nearest known one for an unknown source or setting; `Source.check` checks values.

    Examples
    --------
    >>> from importlib.resources import files
    >>> from openmm_geomgnn.conformers.sources import source_from
    >>> structure = str(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> source = source_from({"source": "trajectory", "file": structure})
    >>> source.check()
    >>> [(z, pos)] = [conformer for task in source.tasks(seed=1) for conformer in source.conformers(task, seed=1)]
    >>> z.shape, pos.shape  # atomic numbers, and coordinates in angstrom
    ((22,), (22, 3))
    """
    settings = dict(settings)
    name = settings.pop("source", None)
    if name not in SOURCES:
        raise GeomGNNError(
            f"The conformer source {name!r} is unknown.{did_you_mean(name, SOURCES)} Known: {', '.join(sorted(SOURCES))}."
        )
    known = [setting.name for setting in fields(SOURCES[name])]
    for key in settings:
        if key not in known:
            raise GeomGNNError(
                f"The conformer source `{name}` has no setting {key!r}.{did_you_mean(key, known)} Its settings: "
                f"{', '.join(known)}."
            )
    try:
        return TypeAdapter(SOURCES[name]).validate_python(settings)
    except ValidationError as error:
        problem = error.errors()[0]
        key = problem["loc"][0]
        value = f"is {settings[key]!r}" if key in settings else "is not given"
        raise GeomGNNError(f"{key} of the conformer source `{name}` {value}: {problem['msg']}.") from error


__all__ = ["SOURCES", "Source", "source_from"]
