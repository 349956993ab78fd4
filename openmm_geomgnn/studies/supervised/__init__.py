"""QM9's targets through TorchMD-Net's trainer: networks from scratch against those that start from a pre-trained encoder."""
