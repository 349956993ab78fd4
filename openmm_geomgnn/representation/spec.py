"""What residue tokens depend on besides the molecule: the same settings for an embedding and for a fit."""

from dataclasses import dataclass

from openmm_geomgnn.representation.windows import RADIUS


@dataclass(frozen=True, kw_only=True)
class TokenSettings:
    """How atoms become residue tokens; see `selection`, `windows` and `tokens` for what each setting means.

    `radius` is in nm. `reference` is the path of the structure for window="space"; without it that is the first frame of
    the first trajectory.
    """

    encoder: str = "et-64"
    selection: str | None = None
    window: str = "all"
    context: int = 1
    radius: float = RADIUS
    reference: str | None = None
    pooling: str = "sum"
