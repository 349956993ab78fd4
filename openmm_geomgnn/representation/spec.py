"""How atoms become residue tokens: said once, for the fit, the store, the file of a CV and the live force."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

RADIUS = 0.45  # nm; heavy atoms of residues in contact are closer
_IN_FILES = ("selection", "window", "context", "radius", "neighbours", "pooling")
_EXTENT = {"sequence": "context", "space": "radius"}  # what says how far a window reaches


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """How the atoms of a molecule become residue tokens, whatever the encoder.

    Attributes
    ----------
    selection : str, optional
        The atoms, see `selection.select_atoms`; by default the heavy atoms of the solute.
    window : {"all", "sequence", "space"}
        The graphs that the encoder sees, see `windows.make_windows`.
    context : int
        With `sequence`: residues on either side.
    radius : float
        With `space`: how near a neighbour is, in nm.
    reference : str, optional
        With `space`: the path of the structure in which residues are near each other or not. By default that is the first
        frame of the first trajectory.
    neighbours : list of lists of int, optional
        The residues in each window, as `windows.Windows.neighbours`. Where they are given, nothing else is needed to make
        the same windows again.
    pooling : {"sum", "mean"}
        Over the atoms of a residue, see `tokens.Tokenizer`.

    Examples
    --------
    One window for each residue, with its neighbours in sequence:

    >>> from openmm_geomgnn.representation.spec import TokenSpec
    >>> spec = TokenSpec(window="sequence", context=2)
    >>> spec.extent
    'context'
    >>> spec.differences(TokenSpec(window="sequence", context=1))
    ['context']
    """

    selection: str | None = None
    window: str = "all"
    context: int = 1
    radius: float = RADIUS
    reference: str | None = None
    neighbours: list[list[int]] | None = field(default=None, repr=False)
    pooling: str = "sum"

    def to_metadata(self) -> dict[str, Any]:
        """What files hold of it: a dict that JSON can hold, without `reference`, which `neighbours` replace."""
        return {name: getattr(self, name) for name in _IN_FILES}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "TokenSpec":
        """The spec of what `to_metadata` gave; further entries are ignored."""
        return cls(**{name: metadata[name] for name in _IN_FILES})

    @property
    def needs_structure(self) -> bool:
        """Whether the windows depend on a structure."""
        return self.window == "space" and self.neighbours is None

    @property
    def extent(self) -> str | None:
        """The name of the setting that says how far a window reaches, None with one window of all atoms."""
        return _EXTENT.get(self.window)

    def resolved(self, neighbours: list[list[int]] | None) -> "TokenSpec":
        """The same with the residues of each window."""
        return replace(self, neighbours=neighbours, reference=None)

    def differences(self, other: "TokenSpec") -> list[str]:
        """Names of the settings by which the tokens of `other`, made with the same neighbours or not, differ."""
        names = ("selection", "window", "pooling", *filter(None, [self.extent]))
        return [name for name in names if getattr(self, name) != getattr(other, name)]
