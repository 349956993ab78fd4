"""Make a store of conformers for denoising pre-training: QM9 molecules, and capped peptides in motion.

    python -m openmm_geomgnn.data.make_conformers conformers.safetensors --qm9 60000 --peptides 30000 --seed 1

QM9 gives relaxed small molecules of H, C, N, O and F (Ramakrishnan et al., Sci. Data 2014, 10.1038/sdata.2014.22),
read from the package `qm9pack`. The peptides, ACE-X-NME for all 20 residues and random ACE-XY-NME and ACE-XYZ-NME, are
what a collective variable will see: amber14 with OBC2 implicit solvent at 300, 400 or 500 K, from random torsions, so
that regions such as phi > 0, which a simulation started in a helix or strand does not reach, are there too. The same
arguments give the same conformers.
"""

import argparse
import csv
import importlib.util
import io
import itertools
import random
import sys
import time
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openmm_geomgnn.errors import GeomGNNError
from torchmdnet_ext.datasets.conformers import write_conformers

QM9_ATOMIC_NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
RESIDUES = "ARNDCQEGHILKMFPSTWYV"
TEMPERATURES = (300.0, 400.0, 500.0)  # K
# residues in a peptide: share of the conformers, conformers of one sequence (None: all 20 residues share equally)
LENGTHS = {1: (0.60, None), 2: (0.32, 40), 3: (0.08, 40)}
FRAMES_PER_START = 20
STEPS_PER_FRAME = 200  # of 4 fs: 0.8 ps
TIME_STEP = 0.004  # ps
CLASH = 0.16  # nm; a bond through a ring is closer than this to one of the ring's atoms
BOND_STRETCH = 0.04  # nm; a heavy-atom bond stretched by more is strained by a knot, not by heat


def missing(package):
    return GeomGNNError(
        f"The package `{package}` is not installed, and conformers cannot be made without it: `pip install {package}`, "
        f"or leave its part out (--qm9 0 or --peptides 0)."
    )


# --- QM9 ------------------------------------------------------------------------------------------------------------


def qm9_files():
    """The three text files of QM9 inside the installed `qm9pack` (which is not imported: it needs pandas)."""
    spec = importlib.util.find_spec("qm9pack")
    if spec is None:
        raise missing("qm9pack")
    files = [Path(spec.submodule_search_locations[0]) / "data" / f"qm9_part{i}.csv" for i in (1, 2, 3)]
    for file in files:
        if not file.is_file():
            raise GeomGNNError(
                f"The package `qm9pack` is installed but lacks {file.name}: "
                "`pip install --force-reinstall --no-deps qm9pack==1.0.3`."
            )
    return files


def parse_qm9(elements, coordinates):
    """A molecule from qm9pack's text: `['C','H']` and `[[0.,1.5*^-6,2.],[...]]` in angstrom; z (N,), pos (N, 3)."""
    z = [QM9_ATOMIC_NUMBERS[e] for e in elements.strip("[]").replace("'", "").split(",")]
    numbers = coordinates.replace("*^", "e").replace("[", "").replace("]", "").split(",")
    return np.array(z), np.array([float(n) for n in numbers]).reshape(-1, 3)


def qm9(number, seed, advance=lambda: None):
    """Yield (z (N,), pos (N, 3) in angstrom, "qm9") for `number` molecules drawn at random, in the data set's order."""
    if number == 0:
        return
    rows = []
    for file in qm9_files():
        with open(file, newline="") as text:
            rows += [(row["Elements"], row["XYZ_Ang"]) for row in csv.DictReader(text)]
    if number > len(rows):
        raise GeomGNNError(f"--qm9 was {number} and QM9 has {len(rows)} molecules: give at most that, or `all`.")
    # a permutation, so that a smaller set is part of a larger one with the same seed
    for i in np.sort(np.random.default_rng([seed, 9]).permutation(len(rows))[:number]):
        yield *parse_qm9(*rows[i]), "qm9"
        advance()


# --- peptides -------------------------------------------------------------------------------------------------------


def capped_pdb(sequence):
    """The heavy atoms of extended ACE-`sequence`-NME in PDB format (an A at each end of the chain becomes a cap)."""
    for module, package in (("PeptideBuilder", "PeptideBuilder"), ("Bio", "biopython")):
        if importlib.util.find_spec(module) is None:
            raise missing(package)
    import PeptideBuilder

    chain = PeptideBuilder.make_extended_structure(f"A{sequence}A")
    residues = list(chain.get_residues())
    ace = {"CA": "CH3", "C": "C", "O": "O"}
    nme = {"N": "N", "CA": "C"}
    lines = []
    for i, residue in enumerate(residues, start=1):
        cap, names = {1: ("ACE", ace), len(residues): ("NME", nme)}.get(i, (None, None))
        for atom in residue:
            if cap and atom.name not in names:
                continue
            name = names[atom.name] if cap else atom.name
            x, y, z = atom.coord
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {name:<3s} {cap or residue.resname:3s} A{i:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {name[0]:>2s}\n"
            )
    return "".join(lines) + "END\n"


def with_gbsaobc(system):
    """Replace the OBC2 CustomGBForce of `system` by the equivalent built-in GBSAOBCForce, many times faster."""
    import openmm

    i, custom = next((i, f) for i, f in enumerate(system.getForces()) if isinstance(f, openmm.CustomGBForce))
    fast = openmm.GBSAOBCForce()
    fast.setNonbondedMethod(openmm.GBSAOBCForce.NoCutoff)
    fast.setSolventDielectric(78.5)
    fast.setSoluteDielectric(1.0)
    for k in range(custom.getNumParticles()):
        charge, radius, scaled = custom.getParticleParameters(k)
        fast.addParticle(charge, radius + 0.009, scaled / radius)
    system.removeForce(i)
    system.addForce(fast)


def bond_distances(n_atoms, bonds):
    """The number of bonds on the shortest path between any two atoms, (n, n), 4 for all that are further apart."""
    adjacent = np.eye(n_atoms, dtype=int)
    adjacent[bonds[:, 0], bonds[:, 1]] = adjacent[bonds[:, 1], bonds[:, 0]] = 1
    reach = np.eye(n_atoms, dtype=int)
    distance = np.full((n_atoms, n_atoms), 4)
    for step in range(4):
        distance = np.minimum(distance, np.where(reach > 0, step, 4))
        reach = reach @ adjacent
    return distance


def rotatable_bonds(topology, bonds):
    """The torsions to draw at random, as (atom b, atom c, the atoms that turn with c): no rings, no amide bonds."""
    atoms = list(topology.atoms())
    neighbours = [set() for _ in atoms]
    for b, c in bonds:
        neighbours[b].add(c)
        neighbours[c].add(b)
    heavy = [sum(atoms[j].element.atomic_number > 1 for j in near) for near in neighbours]
    found = []
    for b, c in sorted(map(tuple, np.sort(bonds, axis=1).tolist())):
        stiff = {atoms[b].name, atoms[c].name} in ({"C", "N"}, {"NE", "CZ"})
        hydrogen = 1 in (atoms[b].element.atomic_number, atoms[c].element.atomic_number)
        if stiff or hydrogen or min(heavy[b], heavy[c]) < 2:
            continue
        side, grow = {c}, [c]
        while grow:
            a = grow.pop()
            new = neighbours[a] - side - ({b} if a == c else set())
            side |= new
            grow += new
        if b not in side:
            found.append((b, c, np.array(sorted(side))))
    return found


def rotate(pos, b, c, side, angle):
    """Turn the atoms `side` of pos (N, 3) about the axis b-c by `angle` (radians); returns a new array."""
    axis = pos[c] - pos[b]
    axis /= np.linalg.norm(axis)
    arm = pos[side] - pos[c]
    along = np.outer(arm @ axis, axis)
    pos = pos.copy()
    pos[side] = pos[c] + along + (arm - along) * np.cos(angle) + np.cross(axis, arm) * np.sin(angle)
    return pos


class Peptide:
    """ACE-`sequence`-NME in implicit solvent, ready to run from random torsions."""

    def __init__(self, sequence, field, platform, seed):
        import openmm
        from openmm import app, unit

        self.unit = unit
        pdb = app.PDBFile(io.StringIO(capped_pdb(sequence)))
        modeller = app.Modeller(pdb.topology, pdb.positions)
        # Modeller draws the first guess of the hydrogens from the process-wide generator
        state = random.getstate()
        try:
            random.seed(f"{seed} {sequence}")
            modeller.addHydrogens(field, platform=platform)
        finally:
            random.setstate(state)
        system = field.createSystem(modeller.topology, constraints=app.HBonds, hydrogenMass=2 * unit.amu)
        with_gbsaobc(system)
        self.z = np.array([a.element.atomic_number for a in modeller.topology.atoms()])
        self.bonds = np.array([(b[0].index, b[1].index) for b in modeller.topology.bonds()])
        self.heavy_bonds = self.bonds[(self.z[self.bonds] > 1).all(axis=1)]
        self.apart = bond_distances(len(self.z), self.bonds) > 3
        self.torsions = rotatable_bonds(modeller.topology, self.bonds)
        self.integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, TIME_STEP)
        self.context = openmm.Context(system, self.integrator, platform)
        self.context.setPositions(modeller.positions)
        openmm.LocalEnergyMinimizer.minimize(self.context, 10.0, 500)
        self.reference = self.positions()
        self.reference_lengths = self.lengths(self.reference)

    def positions(self):
        return self.context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(self.unit.nanometer)

    def lengths(self, pos):
        return np.linalg.norm(pos[self.heavy_bonds[:, 0]] - pos[self.heavy_bonds[:, 1]], axis=1)

    def random_torsions(self, rng):
        """The reference geometry with every torsion drawn anew, without clashes; (N, 3) nm."""
        best, best_gap = None, -1.0
        for _ in range(200):
            pos = self.reference
            for torsion in self.torsions:
                pos = rotate(pos, *torsion, rng.uniform(0, 2 * np.pi))
            gap = np.linalg.norm(pos[:, None] - pos[None], axis=2)[self.apart].min()
            if gap > best_gap:
                best, best_gap = pos, gap
            if gap > CLASH:
                break
        return best

    def frames(self, rng, number):
        """Yield up to `number` conformers (N, 3) in angstrom of one run, fewer if the molecule comes apart."""
        import openmm

        temperature = float(rng.choice(TEMPERATURES))
        self.integrator.setTemperature(temperature)
        self.integrator.setRandomNumberSeed(int(rng.integers(1, 2**31)))
        # the integrator takes its seed when its context is made
        self.context.reinitialize()
        self.context.setPositions(self.random_torsions(rng))
        openmm.LocalEnergyMinimizer.minimize(self.context, 50.0, 100)
        self.context.setVelocitiesToTemperature(temperature, int(rng.integers(1, 2**31)))
        for _ in range(number):
            try:
                self.integrator.step(STEPS_PER_FRAME)
            except openmm.OpenMMException:
                # how OpenMM reports a particle at NaN; any other fault comes back at every start and ends in an error
                return
            pos = self.positions()
            if not np.isfinite(pos).all() or (self.lengths(pos) - self.reference_lengths).max() > BOND_STRETCH:
                return
            yield pos * 10


def plan(number, seed):
    """[(sequence, conformers of it)] that add up to `number`: all 20 single residues, then random longer ones."""
    rng = np.random.default_rng([seed, 20])
    planned = []
    for length, (share, each) in LENGTHS.items():
        amount = number - sum(n for _, n in planned) if length == max(LENGTHS) else round(share * number)
        kinds = len(RESIDUES) if each is None else max(1, round(amount / each))
        if each is None:
            sequences = list(RESIDUES)
        else:
            drawn = rng.choice(len(RESIDUES) ** length, size=kinds, replace=kinds > len(RESIDUES) ** length)
            digits = [[k // len(RESIDUES) ** i % len(RESIDUES) for i in range(length)] for k in drawn.tolist()]
            sequences = ["".join(RESIDUES[d] for d in ds) for ds in digits]
        planned += [(s, amount // kinds + (i < amount % kinds)) for i, s in enumerate(sequences)]
    return [(s, n) for s, n in planned if n]


def peptides(number, seed, advance=lambda: None):
    """Yield (z (N,), pos (N, 3) in angstrom, "peptide") for `number` conformers of capped peptides."""
    if number == 0:
        return
    import openmm
    from openmm import app

    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    # for a molecule this small the Reference platform is the fastest, and its results do not depend on threads
    platform = openmm.Platform.getPlatform("Reference")
    for k, (sequence, wanted) in enumerate(plan(number, seed)):
        peptide = Peptide(sequence, field, platform, seed)
        rng = np.random.default_rng([seed, 21, k])
        failures = 0
        while wanted:
            made = 0
            for pos in peptide.frames(rng, min(wanted, FRAMES_PER_START)):
                yield peptide.z, pos, "peptide"
                advance()
                made += 1
            wanted -= made
            failures += made == 0
            if failures == 20:
                raise GeomGNNError(
                    f"ACE-{sequence}-NME could not be run: 20 starts from random torsions came apart. "
                    "Try another --seed, and report it with the versions of openmm and PeptideBuilder."
                )


# --- command --------------------------------------------------------------------------------------------------------


def count(text):
    if text == "all":
        return 130_831
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of conformers: give 0 or more")
    return int(text)


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m openmm_geomgnn.data.make_conformers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("output", help="the file to write, .safetensors")
    parser.add_argument("--qm9", type=count, default=6000, help="number of QM9 molecules, or `all` (default 6000)")
    parser.add_argument("--peptides", type=count, default=5000, help="number of peptide conformers (default 5000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)

    columns = (TextColumn("{task.description:9s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    start = time.monotonic()
    try:
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)) as progress:
            bars = {name: progress.add_task(name, total=getattr(options, name)) for name in ("qm9", "peptides")}

            def part(name, make):
                return make(getattr(options, name), options.seed, lambda: progress.advance(bars[name]))

            conformers = itertools.chain(part("qm9", qm9), part("peptides", peptides))
            how = f"make_conformers --qm9 {options.qm9} --peptides {options.peptides} --seed {options.seed}"
            number = write_conformers(options.output, conformers, how)
    except ValueError as error:
        sys.exit(str(error))
    size = Path(options.output).stat().st_size / 1e6
    print(f"{options.output}: {number} conformers, {size:.2f} MB, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
