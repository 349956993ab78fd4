"""Whether frames of a molecule still have its bonds, judged by distances and covalent radii."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

# of the sum of two covalent radii: shorter is a bond, and a molecule in which nothing is nearer than the second is in parts
_BOND, _APART = 1.3, 1.5
SAME, OTHER, APART = "same", "other", "apart"


class BondCheck:
    """Compares frames of a molecule with a first one.

    Parameters
    ----------
    z : (N,) int array
        Atomic numbers.
    pos : (N, 3) array
        The first frame, in angstrom.
    """

    def __init__(self, z: np.ndarray, pos: np.ndarray) -> None:
        from ase.data import covalent_radii

        radii = covalent_radii[np.asarray(z)]
        self._z = [int(number) for number in z]
        self._sums = radii[:, None] + radii[None, :]
        self._same = cache(self._is_same)
        self._first = self._bonds(pos, _BOND)
        self._parts = self._count_parts(pos)

    def __call__(self, pos: np.ndarray) -> str:
        """What became of the bonds in a frame (N, 3).

        "same"; "other" where atoms are bound otherwise, or on their way to it (atoms of one element are not told apart: a
        proton between two equal oxygens changes nothing once it has arrived); "apart" where it fell into more parts.
        """
        if self._count_parts(pos) > self._parts:
            return APART
        return SAME if self._same(self._bonds(pos, _BOND).tobytes()) else OTHER

    def _bonds(self, pos: np.ndarray, reach: float) -> np.ndarray:
        distances = np.linalg.norm(pos[:, None] - pos[None, :], axis=-1)
        near = distances < reach * self._sums
        np.fill_diagonal(near, False)
        return near

    def _count_parts(self, pos: np.ndarray) -> int:
        from scipy.sparse.csgraph import connected_components

        return int(connected_components(self._bonds(pos, _APART), directed=False, return_labels=False))

    def _is_same(self, bonds: bytes) -> bool:
        first, other = (self._graph(one) for one in (self._first, np.frombuffer(bonds, bool).reshape(self._first.shape)))
        import networkx

        return networkx.is_isomorphic(first, other, node_match=lambda a, b: a["z"] == b["z"])

    def _graph(self, bonds: np.ndarray) -> Any:
        import networkx

        graph = networkx.from_numpy_array(bonds.astype(int))
        networkx.set_node_attributes(graph, dict(enumerate(self._z)), "z")
        return graph
