"""Datasets of conformers for TorchMD-Net's trainer."""
