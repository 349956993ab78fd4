"""Encoders, conformers, example systems and protocols that ship with the package."""
