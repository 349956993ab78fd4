"""Types that many annotations share; strings that type checkers evaluate, so that importing them imports no library."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import os

    import mdtraj
    import openmm
    import openmm.app
    import openmm.unit

PathLike: TypeAlias = "str | os.PathLike[str]"
# a topology, or a structure file that has one
TopologyLike: TypeAlias = "openmm.app.Topology | mdtraj.Topology | str | os.PathLike[str]"
# a number in the default unit that the docstring states, or a quantity in any unit of that dimension
QuantityLike: TypeAlias = "float | openmm.unit.Quantity"
