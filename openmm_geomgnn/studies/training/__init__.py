"""Networks that studies train: each a folder with its own settings of TorchMD-Net's trainer, many side by side."""
