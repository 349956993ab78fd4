"""`Embeddings`, under the name by which other people's code imports it."""

from openmm_geomgnn.representation.store import Embeddings

__all__ = ["Embeddings"]
