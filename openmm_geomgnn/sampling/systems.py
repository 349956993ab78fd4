"""From a structure file to an OpenMM System and platform."""

import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from openmm.app.internal.pdbx.reader.PdbxReader import PdbxReader

from openmm_geomgnn.aliases import PathLike
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.formats import reason
from openmm_geomgnn.units import did_you_mean, positive

CONSTRAINTS = {None: None, "HBonds": app.HBonds, "AllBonds": app.AllBonds, "HAngles": app.HAngles}
READERS = {".pdb": app.PDBFile, ".ent": app.PDBFile, ".cif": app.PDBxFile, ".mmcif": app.PDBxFile}
PME_CUTOFF = 1.0  # nm, by default
# Reference is faster than CPU below about this many atoms: it has no overhead per step
SMALL_SYSTEM = 60
# parts of the names of OpenMM's force fields that hold an implicit solvent
_IMPLICIT_NAMES = ("implicit/", "_obc", "_gbn", "_gk")
# how implicit/obc2.xml writes OBC2 as a CustomGBForce, with radii reduced by the offset (nm)
_OBC2_RADIUS = "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)"
_ACE_SURFACE = "28.3919551*(radius+0.14)^2*(radius/B)^6"
_OBC2_OFFSET = 0.009


@dataclass(frozen=True)
class SystemSettings:
    """How a topology becomes an OpenMM System.

    Parameters
    ----------
    forcefield : tuple of str
        XML files, OpenMM's own by name, or paths.
    constraints : {None, "HBonds", "AllBonds", "HAngles"}
        As in OpenMM.
    hydrogen_mass : float, openmm Quantity or str, optional
        amu, taken from the heavy atom a hydrogen is bound to. None leaves the masses alone.
    nonbonded_cutoff : float, openmm Quantity or str, optional
        nm. None means no cutoff, or 1 nm if the system is periodic.
    periodic : bool, optional
        None decides by the structure and the force field: a box and no implicit solvent make a periodic system, with
        particle mesh Ewald.
    native_obc : bool
        Evaluate an OBC2 implicit solvent with OpenMM's GBSAOBCForce, which computes the same function up to 40 times as
        fast as the CustomGBForce of implicit/obc2.xml.

    Raises
    ------
    GeomGNNError
        If a value is invalid.
    """

    forcefield: tuple[str, ...] = ("amber14-all.xml", "implicit/obc2.xml")
    constraints: str | None = "HBonds"
    hydrogen_mass: float | None = 3.0
    nonbonded_cutoff: float | None = None
    periodic: bool | None = None
    native_obc: bool = True

    def __post_init__(self) -> None:
        files = (self.forcefield,) if isinstance(self.forcefield, str) else tuple(str(name) for name in self.forcefield)
        object.__setattr__(self, "forcefield", files)
        if not files:
            raise GeomGNNError("No force field is named: give XML files, as in ('amber14-all.xml', 'implicit/obc2.xml').")
        if self.constraints not in CONSTRAINTS:
            raise GeomGNNError(
                f"constraints is {self.constraints!r}, but it must be None, 'HBonds', 'AllBonds' or 'HAngles'."
                + did_you_mean(self.constraints, [name for name in CONSTRAINTS if name])
            )
        for name, of in (("hydrogen_mass", "amu"), ("nonbonded_cutoff", "nm")):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, positive(value, name, of))

    @property
    def implicit(self) -> bool:
        """Whether a force field is one of OpenMM's implicit solvents, by its name."""
        return any(part in name for name in self.forcefield for part in _IMPLICIT_NAMES)

    def as_dict(self) -> dict[str, Any]:
        """The settings as a dict that JSON can hold."""
        return {**asdict(self), "forcefield": list(self.forcefield)}


def load_structure(path: PathLike) -> tuple[app.Topology, np.ndarray]:
    """Read a PDB or PDBx/mmCIF file.

    Returns
    -------
    topology : openmm.app.Topology
    positions : (N, 3) float64 ndarray
        nm

    Raises
    ------
    GeomGNNError
        If the file is missing, of another kind or empty, or has positions that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise GeomGNNError(f"{path} is neither PDB nor PDBx/mmCIF by its name. Give a .pdb or .cif file.")
    if not path.is_file():
        raise GeomGNNError(f"There is no structure file {path}. Check the path.")
    try:
        file = READERS[path.suffix.lower()](str(path))
        positions = np.array(file.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)
    except Exception as error:  # OpenMM's readers raise all kinds of exceptions
        raise GeomGNNError(
            f"{path} cannot be read as a structure ({type(error).__name__}: {reason(error)}). Check that it is a PDB or "
            "PDBx/mmCIF file with coordinates."
        ) from error
    if not file.topology.getNumAtoms():
        raise GeomGNNError(f"{path} holds no atoms. Check that it is a PDB or PDBx/mmCIF file with coordinates.")
    if file.topology.getNumAtoms() == 1:
        raise GeomGNNError(
            f"{path} holds a single atom, which has no shape that a collective variable could see. Give the structure of a "
            "molecule."
        )
    if not np.isfinite(positions).all():
        raise GeomGNNError(f"{path} has positions that are not finite. Check the coordinates.")
    return file.topology, positions


def choices_made(path: PathLike) -> list[str]:
    """Describe in sentences which of several models and alternate locations in a file `load_structure` takes."""
    path, sentences = Path(path), []
    models = READERS[path.suffix.lower()](str(path)).getNumFrames()
    if models > 1:
        sentences.append(f"{path} holds {models} models: the first is used.")
    places: dict[tuple, set[str]] = {}
    for atom, location in _locations(path):
        places.setdefault(atom, set()).add(location)
    several = [" ".join(atom[1:]) for atom, found in places.items() if len(found) > 1]
    if several:
        sentences.append(
            f"{path} holds alternate locations of {len(several)} atoms, the first is {several[0]}: of each the one that "
            "comes first in the file is used."
        )
    return sentences


def _locations(path: Path) -> Iterator[tuple[tuple, str]]:
    """((model, chain, residue, atom), alternate location) of all atoms in a file."""
    if READERS[path.suffix.lower()] is app.PDBFile:
        model = ""
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("MODEL"):
                model = line[6:].strip()
            elif line.startswith(("ATOM", "HETATM")):
                yield (model, line[21].strip(), line[17:20].strip() + line[22:27].strip(), line[12:16].strip()), line[16]
        return
    blocks: list[Any] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        PdbxReader(file).read(blocks)
    table = blocks[0].getObj("atom_site")
    names = ("pdbx_PDB_model_num", "label_asym_id", "label_comp_id", "label_seq_id", "label_atom_id", "label_alt_id")
    columns = [table.getAttributeIndex(name) for name in names]
    for row in table.getRowList():
        model, chain, residue, number, atom, location = ("" if k < 0 else row[k] for k in columns)
        yield (model, chain, residue + number, atom), location


def build_system(topology: app.Topology, settings: SystemSettings | None = None) -> openmm.System:
    """Build the openmm.System of a topology.

    Parameters
    ----------
    topology : openmm.app.Topology
    settings : SystemSettings, optional
        By default the default ones.

    Returns
    -------
    openmm.System

    Raises
    ------
    GeomGNNError
        If a force field is not found or does not know a residue (mostly because atoms are missing), or if OpenMM refuses
        the settings.

    Examples
    --------
    >>> from importlib.resources import files
    >>> from openmm_geomgnn.sampling.systems import SystemSettings, build_system, load_structure
    >>> topology, positions = load_structure(files("openmm_geomgnn.data") / "ala2-c7eq.pdb")
    >>> system = build_system(topology, SystemSettings(hydrogen_mass=2.0))
    >>> system.getNumParticles(), positions.shape
    (22, (22, 3))
    """
    settings = SystemSettings() if settings is None else settings
    try:
        field = _force_field(settings.forcefield, tuple(map(_stamp, settings.forcefield)))
    except Exception as error:  # reading XML raises all kinds of exceptions, as do scripts in it
        raise GeomGNNError(
            f"The force field {' + '.join(settings.forcefield)} cannot be read ({type(error).__name__}: {reason(error)}). "
            "Use the names of OpenMM's own files, as amber14-all.xml, or paths of XML files that are force fields."
        ) from error
    box = topology.getPeriodicBoxVectors()
    periodic = (box is not None and not settings.implicit) if settings.periodic is None else settings.periodic
    if periodic and box is None:
        raise GeomGNNError("The system should be periodic, but the structure has no box. Add one (CRYST1 in a PDB file).")
    cutoff = settings.nonbonded_cutoff
    options = {"constraints": CONSTRAINTS[settings.constraints]}
    if periodic:
        # implicit solvents have no Ewald sum
        options["nonbondedMethod"] = app.CutoffPeriodic if settings.implicit else app.PME
        options["nonbondedCutoff"] = (cutoff or PME_CUTOFF) * unit.nanometer
    else:
        options["nonbondedMethod"] = app.NoCutoff if cutoff is None else app.CutoffNonPeriodic
        if cutoff is not None:
            options["nonbondedCutoff"] = cutoff * unit.nanometer
    if settings.hydrogen_mass is not None:
        options["hydrogenMass"] = settings.hydrogen_mass * unit.amu
    try:
        system = field.createSystem(topology, **options)
    except Exception as error:  # OpenMM's own, and what scripts in the XML raise
        raise GeomGNNError(_explain(error, topology, settings)) from error
    if periodic:
        lengths = [vector[i] for i, vector in enumerate(box.value_in_unit(unit.nanometer))]
        if min(lengths) < 2 * (cutoff or PME_CUTOFF):
            raise GeomGNNError(
                f"The box is {', '.join(f'{length:.3g}' for length in lengths)} nm, less than twice the cutoff of "
                f"{cutoff or PME_CUTOFF:g} nm. Use a larger box or a shorter cutoff, or periodic=False if the box of "
                "the structure file means nothing."
            )
    if settings.native_obc:
        _use_native_obc(system)
    return system


@lru_cache(maxsize=4)
def _force_field(files: tuple[str, ...], stamps: tuple) -> app.ForceField:
    """Load OpenMM's ForceField from these files, which takes half a second. stamps: stamps of the files, see `_stamp`."""
    return app.ForceField(*files)


def _stamp(file: str) -> tuple[int, int] | None:
    """A value that changes when a file is written again; None for a file that OpenMM finds by its name."""
    path = Path(file)
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else None


def _explain(error: Exception, topology: app.Topology, settings: SystemSettings) -> str:
    """Compose OpenMM's message, the residue it is about, and what to do."""
    message = reason(error)
    files = " + ".join(settings.forcefield)
    found = re.search(r"residue (\d+) \((\S+?)\)", message)
    if "emplate" not in message or found is None:
        return f"OpenMM cannot make a system with {files} from this structure: {message}."
    residue = list(topology.residues())[int(found[1])]
    return (
        f"The force field {files} does not recognise residue {residue.name} {residue.id} of chain {residue.chain.id} "
        f"({len(list(residue.atoms()))} atoms): {message}. If hydrogens are missing, add them with "
        "openmm.app.Modeller.addHydrogens(forcefield); if heavy atoms or terminal groups are missing, repair the "
        "structure with PDBFixer (the ends of a chain need OXT, or ACE and NME caps); a ligand or an unusual residue "
        "needs a force field file of its own, and a water model with extra sites Modeller.addExtraParticles."
    )


def _use_native_obc(system: openmm.System) -> None:
    """Replace a CustomGBForce that is the OBC2 model by a GBSAOBCForce (Onufriev, Bashford & Case 2004)."""
    for index, force in enumerate(system.getForces()):
        dielectrics = _obc2_dielectrics(force) if isinstance(force, openmm.CustomGBForce) else None
        if dielectrics is None:
            continue
        native = openmm.GBSAOBCForce()
        native.setSolventDielectric(dielectrics[0])
        native.setSoluteDielectric(dielectrics[1])
        for i in range(force.getNumParticles()):
            charge, radius, scaled = force.getParticleParameters(i)
            native.addParticle(charge, radius + _OBC2_OFFSET, scaled / radius)
        native.setNonbondedMethod(force.getNonbondedMethod())  # the two enumerations agree
        native.setCutoffDistance(force.getCutoffDistance())
        system.removeForce(index)
        system.addForce(native)
        return


def _obc2_dielectrics(force: openmm.CustomGBForce) -> tuple[float, float] | None:
    """Get the (solvent, solute) dielectric constants of a CustomGBForce that is OBC2 with the ACE surface term, else None.

    The expressions decide: any other force (OBC1, GBn, HCT, salt, no surface term) must stay as it is.
    """
    names = [force.getPerParticleParameterName(i) for i in range(force.getNumPerParticleParameters())]
    values = [force.getComputedValueParameters(i)[:2] for i in range(force.getNumComputedValues())]
    terms = [force.getEnergyTermParameters(i)[0] for i in range(force.getNumEnergyTerms())]
    if names != ["charge", "or", "sr"] or [name for name, _ in values] != ["I", "B"] or len(terms) != 3:
        return None
    if force.getNumGlobalParameters() or force.getNumExclusions() or force.getNumTabulatedFunctions():
        return None
    if _OBC2_RADIUS not in values[1][1] or _ACE_SURFACE not in terms[1]:
        return None
    constants = dict(re.findall(r"(\w+)\s*=\s*([-+.\deE]+)\s*(?:;|$)", terms[2]))
    if not {"solventDielectric", "soluteDielectric", "kappa", "offset"} <= set(constants) or float(constants["kappa"]):
        return None
    if not math.isclose(float(constants["offset"]), _OBC2_OFFSET, rel_tol=1e-6):
        return None
    return float(constants["solventDielectric"]), float(constants["soluteDielectric"])


def system_topology(topology: app.Topology, system: openmm.System) -> app.Topology:
    """Give a topology the box of its system, or none if the system is not periodic, and return it.

    Structure files of molecules without solvent often have a meaningless box.
    """
    if topology.getNumAtoms() != system.getNumParticles():
        raise GeomGNNError(
            f"The structure has {topology.getNumAtoms()} atoms but the system {system.getNumParticles()} particles: "
            "give the structure that the system was made from."
        )
    if not system.usesPeriodicBoundaryConditions():
        topology.setPeriodicBoxVectors(None)
    elif topology.getPeriodicBoxVectors() is None:
        topology.setPeriodicBoxVectors(system.getDefaultPeriodicBoxVectors())
    return topology


def degrees_of_freedom(system: openmm.System) -> int:
    """Count kinetic degrees of freedom: 3 per massive particle, less constraints and a removed centre-of-mass motion."""
    massive = [system.getParticleMass(i)._value > 0 for i in range(system.getNumParticles())]
    constrained = 0
    for k in range(system.getNumConstraints()):
        i, j, _ = system.getConstraintParameters(k)
        constrained += massive[i] or massive[j]
    removed = any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())
    return 3 * sum(massive) - constrained - 3 * removed


def choose_platform(
    name: str = "auto", n_particles: int | None = None, precision: str = "mixed", threads: int = 1
) -> tuple[openmm.Platform, dict[str, str]]:
    """Get an OpenMM platform and its properties by name.

    Parameters
    ----------
    name : str
        "auto" is CUDA, else HIP, if a Context can be made on them; else Reference for fewer than 60 particles and CPU for
        more. OpenCL must be requested by name.
    n_particles : int, optional
        Size of the system, for "auto".
    precision : {"single", "mixed", "double"}
        For GPU platforms.
    threads : int
        For CPU; one by default, since walkers run in parallel, and more threads than free cores are very slow.

    Returns
    -------
    platform : openmm.Platform
    properties : dict of str to str

    Raises
    ------
    GeomGNNError
        If this platform is not there; the message lists those that are.
    """
    there = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name == "auto":
        gpus = (gpu for gpu in ("CUDA", "HIP") if gpu in there and _works(gpu))
        small = n_particles is not None and n_particles < SMALL_SYSTEM
        name = next(gpus, "CPU" if "CPU" in there and not small else "Reference")
    if name not in there:
        raise GeomGNNError(
            f"There is no OpenMM platform {name!r} here. There are {', '.join(there)}; or say 'auto'."
            + did_you_mean(name, there)
        )
    if precision not in ("single", "mixed", "double"):
        raise GeomGNNError(f"The precision of a platform is 'single', 'mixed' or 'double', but was {precision!r}.")
    if name == "CPU":
        properties = {"Threads": str(threads)}
    else:
        properties = {} if name == "Reference" else {"Precision": precision}
    return openmm.Platform.getPlatformByName(name), properties


def _works(name: str) -> bool:
    """Whether a Context can be made: the plugin may be installed on a machine without such a GPU."""
    system = openmm.System()
    system.addParticle(1.0)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(name))
    except openmm.OpenMMException:
        return False
    return True
