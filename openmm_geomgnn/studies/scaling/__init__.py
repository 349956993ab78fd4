"""How the loss of denoising depends on depth, width, aspect ratio, cutoff, and on number and source of the conformers."""
