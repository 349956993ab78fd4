"""Output heads for TorchMD-Net's trainer."""
