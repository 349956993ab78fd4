"""Models, heads, datasets and the denoising task that TorchMD-Net's trainer learns from openmm-geomgnn.

Importing this package is cheap and imports neither torch nor TorchMD-Net: the `torch.backends` entry point
(`torchmdnet_ext._autoload`) passes through here at every `import torch`.
"""
