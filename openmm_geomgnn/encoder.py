"""`Encoder`, under the name by which other people's code imports it."""

from openmm_geomgnn.representation.encoder import Encoder, shipped_encoders

__all__ = ["Encoder", "shipped_encoders"]
