"""Energies and forces of molecules that are distorted: labelled trajectories, networks from scratch and from encoders."""
