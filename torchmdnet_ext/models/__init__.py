"""Representation networks for TorchMD-Net, with smooth envelopes and all neighbours within the cutoff."""
