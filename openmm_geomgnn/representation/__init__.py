"""From the atoms of trajectories to residue tokens: selections, windows, encoders, and embeddings on disk."""
