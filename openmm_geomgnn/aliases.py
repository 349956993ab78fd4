"""Types that many annotations share; what they name is imported by type checkers only."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias, Union

if TYPE_CHECKING:
    import mdtraj
    import openmm
    import openmm.app
    import openmm.unit

PathLike: TypeAlias = str | os.PathLike[str]
# a topology, or a structure file that has one
TopologyLike: TypeAlias = Union["openmm.app.Topology", "mdtraj.Topology", PathLike]
# a number in the default unit that the docstring states, or a quantity in any unit of that dimension
QuantityLike: TypeAlias = Union[float, "openmm.unit.Quantity"]
# called as progress(stage, done, total)
StageProgress: TypeAlias = Callable[[str, int, int], None]
