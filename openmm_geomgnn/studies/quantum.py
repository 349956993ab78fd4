"""Orbital energies and dipole moments of small molecules at one level of theory, computed by PySCF.

PySCF: Sun et al., J. Chem. Phys. 153, 024109 (2020).
"""

import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.units import did_you_mean

HARTREE = 27.211386245988  # eV
HARTREE_FOCK = "hf"
# the level of theory of QM9's labels
QM9_FUNCTIONAL, QM9_BASIS = "b3lyp", "6-31G(2df,p)-gaussian"
_EXAMPLES = f"Give a name such as svwn, pbe, b3lyp, camb3lyp, or {HARTREE_FOCK} for Hartree-Fock."
_RELATIVE_STEP = 1e-3  # of the exponent in the derivative that makes a Cartesian d shell of a spherical one


@dataclass(frozen=True)
class SCFSettings:
    """How a self-consistent field is computed.

    max_cycles: iterations after which it counts as not converged. grid_level: PySCF's level of the integration grid, 0 to 9.
    tolerance: change of the energy at which it is converged, hartree.
    """

    max_cycles: int = 100
    grid_level: int = 3
    tolerance: float = 1e-9


@dataclass(frozen=True)
class OrbitalEnergies:
    """The result of one calculation: energy in hartree; homo, lumo and gap in eV; dipole in debye.

    `functions` is the number of basis functions. Where `problem` says why there is no result, all others are None.
    """

    energy: float | None = None
    homo: float | None = None
    lumo: float | None = None
    gap: float | None = None
    dipole: float | None = None
    functions: int | None = None
    problem: str | None = None


def require_pyscf() -> None:
    """Raise a GeomGNNError unless PySCF is installed."""
    if importlib.util.find_spec("pyscf") is None:
        raise GeomGNNError(
            'Calculations of labels need PySCF, which is not installed: pip install "openmm-geomgnn[labels]". It has no '
            "wheels for Windows."
        )


def check_functional(name: str) -> None:
    """Raise a GeomGNNError unless PySCF can compute the functional `name`; `hf` is Hartree-Fock."""
    require_pyscf()
    from pyscf.dft import libxc

    try:
        if not name.strip():
            raise ValueError("it is empty")
        libxc.parse_xc(name)
    except (KeyError, ValueError) as error:
        known = [key.lower() for key in (*libxc.XC_ALIAS, *libxc.XC_CODES)]
        raise GeomGNNError(
            f"The functional '{name}' is not one that PySCF has.{did_you_mean(name.lower(), known)} {_EXAMPLES}"
        ) from error
    # some names are known and still cannot be computed
    tried = compute_orbitals((1, 1), np.array([[0, 0, 0], [0, 0, 0.74]]), name, "sto-3g", SCFSettings(grid_level=0))
    if tried.problem is not None:
        raise GeomGNNError(
            f"The functional '{name}' cannot be computed by this PySCF, not even for H2 ({tried.problem}). {_EXAMPLES}"
        )


def check_basis(name: str, elements: Iterable[int]) -> None:
    """Raise a GeomGNNError unless PySCF has functions of the basis `name` for each of the `elements`, atomic numbers."""
    require_pyscf()
    from pyscf import gto

    for z in sorted(set(elements)):
        try:
            _shells(name, z)
        except Exception as error:  # PySCF raises all kinds of exceptions for a name that it does not have
            known = [*gto.basis.ALIAS, QM9_BASIS]
            raise GeomGNNError(
                f"The basis '{name}' is not one that PySCF has for the element {gto.mole._symbol(z)}."
                f"{did_you_mean(name.lower(), known)} Give a name such as sto-3g, def2-tzvp, aug-cc-pvtz, or {QM9_BASIS} "
                "for the basis of QM9's labels."
            ) from error


def compute_orbitals(
    z: Iterable[int], pos: np.ndarray, functional: str, basis: str, settings: SCFSettings | None = None
) -> OrbitalEnergies:
    """Compute a neutral molecule of paired electrons; what goes wrong becomes the `problem` of the result.

    Parameters
    ----------
    z : iterable of int
        Atomic numbers, (N,).
    pos : ndarray
        Coordinates in angstrom, (N, 3).
    functional, basis : str
        As `check_functional` and `check_basis` accept them.
    settings : SCFSettings, optional

    Returns
    -------
    OrbitalEnergies
        Rounded to 1e-8 hartree, 1e-6 eV and 1e-6 debye.

    Raises
    ------
    GeomGNNError
        If PySCF is not installed.
    """
    require_pyscf()
    settings = settings or SCFSettings()
    try:
        return _compute(list(z), pos, functional, basis, settings)
    except Exception as error:  # one calculation of many: the others go on
        return OrbitalEnergies(problem=f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}")


def _compute(z: list[int], pos: np.ndarray, functional: str, basis: str, settings: SCFSettings) -> OrbitalEnergies:
    from pyscf import dft, gto, scf

    atoms = [(number, tuple(map(float, place))) for number, place in zip(z, pos, strict=True)]
    shells = {gto.mole._symbol(number): _shells(basis, number) for number in set(z)}
    molecule = gto.M(atom=atoms, basis=shells, verbose=0)
    if functional.lower() == HARTREE_FOCK:
        field: Any = scf.RHF(molecule)
    else:
        field = dft.RKS(molecule, xc=functional)
        field.grids.level = settings.grid_level
    field.chkfile = None
    field.max_cycle, field.conv_tol = settings.max_cycles, settings.tolerance
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        field.kernel()
    if not field.converged:
        return OrbitalEnergies(problem=f"the SCF has not converged in {settings.max_cycles} cycles")
    occupied = molecule.nelectron // 2
    if len(field.mo_energy) <= occupied:
        return OrbitalEnergies(problem="the basis has no empty orbital")
    homo, lumo = (round(float(energy) * HARTREE, 6) for energy in field.mo_energy[occupied - 1 : occupied + 1])
    dipole = float(np.linalg.norm(field.dip_moment(unit="Debye", verbose=0)))
    return OrbitalEnergies(
        round(float(field.e_tot), 8), homo, lumo, round(lumo - homo, 6), round(dipole, 6), int(molecule.nao)
    )


def _shells(name: str, z: int) -> list[Any]:
    """The shells of a basis for an element, as PySCF holds them: [angular momentum, [exponent, coefficient], ...]."""
    from pyscf import gto

    symbol = gto.mole._symbol(z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package with more basis sets
        if name.lower() == QM9_BASIS.lower():
            return _qm9_shells(symbol)
        shells = gto.basis.load(name, symbol)
    if not shells:
        raise ValueError(f"no functions for {symbol}")
    return shells


def _qm9_shells(symbol: str) -> list[Any]:
    """6-31G(2df,p) as Gaussian has it: two Cartesian d shells, 2 and 1/2 times the exponent in 6-31G*, and spherical f.

    The tables of PySCF and of the Basis Set Exchange have the d exponents of 6-311G(2df,p) under this name, and programs
    other than Gaussian take spherical d functions.
    """
    from pyscf import gto

    if symbol == "H":
        return gto.basis.load("6-31G(2df,p)", symbol)
    shells = gto.basis.load("6-31G", symbol)
    ((exponent, _),) = (shell[1] for shell in gto.basis.load("6-31G*", symbol) if shell[0] == 2)
    for scaled in (2 * exponent, exponent / 2):
        shells += [[2, [scaled, 1.0]], _square_times_s(scaled)]
    return shells + [shell for shell in gto.basis.load("6-31G(2df,p)", symbol) if shell[0] == 3]


def _square_times_s(exponent: float) -> list[Any]:
    """The s function r^2 exp(-a r^2), which Cartesian d functions hold and spherical ones do not.

    It is minus the derivative of exp(-a r^2) by a: two Gaussians of nearly the same exponent. Their coefficients are those
    of normalised Gaussians, hence the powers.
    """
    low, high = exponent * (1 - _RELATIVE_STEP), exponent * (1 + _RELATIVE_STEP)
    return [0, [low, low**-0.75], [high, -(high**-0.75)]]
