"""The probes of `geomgnn doctor`, each run in its own process, since incompatible native libraries crash.

`python -m openmm_geomgnn.cli.probes NAME ARGUMENT...` prints the findings of a probe as JSON in the last line.
"""

import json
import sys
from importlib import resources
from typing import Any

LARGE_SYSTEM = 10_000  # numbers of atoms for which `auto` chooses a platform
REPEATS = 4  # evaluations that are timed; TorchScript is recompiled at the first two


def platforms() -> dict[str, Any]:
    """List OpenMM's platforms, those that `auto` takes for small and large systems, and plug-ins that fail to load."""
    import openmm

    from openmm_geomgnn.sampling.systems import choose_platform

    names = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    auto = {size: choose_platform("auto", count)[0].getName() for size, count in (("small", 1), ("large", LARGE_SYSTEM))}
    # plug-ins that need PyTorch's libraries are loaded with it; those of an absent platform need no mention
    failures = [text for text in openmm.Platform.getPluginLoadFailures() if "OpenMMTorch" not in text]
    return {"names": names, "auto": auto, "failures": [text for text in failures if ": libOpenMM" not in text]}


def platform(name: str) -> dict[str, Any]:
    """Try a step of two particles on a platform; report OpenMM's estimate of its speed."""
    import openmm

    system = openmm.System()
    bond = openmm.HarmonicBondForce()
    bond.addBond(system.addParticle(1.0), system.addParticle(1.0), 0.1, 1000.0)
    system.addForce(bond)
    chosen = openmm.Platform.getPlatformByName(name)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen)
    context.setPositions([[0.0, 0.0, 0.0], [0.12, 0.0, 0.0]])
    context.getIntegrator().step(1)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    if not energy > 0:
        raise RuntimeError(f"a stretched bond has the energy {energy} kJ/mol")
    return {"speed": chosen.getSpeed()}


def engines() -> dict[str, Any]:
    """Report the engine of each shipped encoder, the folder of compiled kernels, and the networks that have some."""
    import torch

    from openmm_geomgnn.representation.encoder import Encoder, shipped_encoders
    from torchmdnet_ext.compiled import COMPILED, why_not_numba

    encoders = {name: why_not_numba(Encoder.load(name).network) for name in shipped_encoders()}
    try:
        from torchmdnet_ext.compiled.cache import cache_folder
    except ImportError:  # there are no kernels without numba
        folder, warm = None, []
    else:
        folder = cache_folder()
        kept = {path.name.split(".")[0] for path in folder.glob("*.backward-*.nbi")} if folder else set()
        warm = [network for network, (module, _) in COMPILED.items() if module.replace("_numba", "_kernels") in kept]
    return {
        "encoders": encoders,
        "networks": list(COMPILED),
        "folder": folder and str(folder),
        "warm": warm,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def backend(name: str) -> dict[str, Any]:
    """Report why a backend cannot be used or, if it can, how fast it evaluates the example and which engine `auto` takes.

    It is also evaluated within a CustomCVForce, and after having been read from XML.
    """
    from openmm_geomgnn.force.backends import why_not

    reason = why_not(name)
    return {"reason": reason, **({} if reason else _evaluated(name))}


def _example_force(backend: str, engine: str) -> Any:
    """Make a CV without a fit: two features of et-64 on the dipeptide that ships."""
    import mdtraj
    import numpy as np

    from openmm_geomgnn import Encoder, GeomGNNCV
    from openmm_geomgnn.cv.mixers import make_mixer
    from openmm_geomgnn.cv.network import CollectiveVariable
    from openmm_geomgnn.representation.selection import residue_table, select_atoms

    path = resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"
    topology = mdtraj.load(str(path)).topology
    table, encoder = residue_table(topology, select_atoms(topology, None)), Encoder.load("et-64")
    mixer = make_mixer("none", len(table), encoder.hidden_channels)
    projection = np.eye(mixer.out_features, 2)
    cv = CollectiveVariable(encoder, mixer, np.zeros(mixer.out_features), projection, np.ones(2), table)
    return GeomGNNCV(cv, topology, backend=backend, engine=engine, failures=None)


def _evaluated(backend: str) -> dict[str, Any]:
    """Evaluate the example with a backend, with all operations that crash if versions are incompatible."""
    import time

    import numpy as np
    import openmm
    from openmm import app

    pdb = app.PDBFile(str(resources.files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb"))
    auto = _example_force(backend, "auto").bound.engine_name
    force = _example_force(backend, "eager")
    expected = force.compute(pdb.getPositions(asNumpy=True))[0, 0]
    system = openmm.System()
    for atom in pdb.topology.atoms():
        system.addParticle(atom.element.mass)
    outer = openmm.CustomCVForce("q")
    outer.addCollectiveVariable("q", force)
    system.addForce(outer)
    for each in (system, openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))):
        context = openmm.Context(each, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(pdb.getPositions())
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            state = context.getState(getEnergy=True, getForces=True)
            seconds.append(time.perf_counter() - start)
        energy, forces = state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value
        if not (abs(energy - expected) <= 1e-3 * max(1.0, abs(expected)) and np.isfinite(forces).all() and forces.any()):
            raise RuntimeError(f"the example has the value {energy:.6g}, but it must be {expected:.6g}")
    return {"milliseconds": 1000 * min(seconds), "engine": auto}


PROBES = {"platforms": platforms, "platform": platform, "engines": engines, "backend": backend}

if __name__ == "__main__":
    result = PROBES[sys.argv[1]](*sys.argv[2:])
    print("\n" + json.dumps(result))
