"""What read-outs by compiled kernels have in common."""

import numpy as np


def own_atoms(tokenizer):
    """The window atoms that count (n,), the token of each (n,), and the factor of each token's sum (R,)."""
    windows = tokenizer.windows
    own = np.flatnonzero(windows.token >= 0)
    token = windows.token[own]
    size = np.bincount(token, minlength=windows.n_tokens)
    return own, token, 1.0 / size if tokenizer.pooling == "mean" else np.ones(windows.n_tokens)


class CompiledReadout:
    """Base of read-outs by kernels; `kernels()` returns the jitted functions."""

    def __init__(self, dtype):
        self._kernels, self._dtype = self.kernels(), np.dtype(str(dtype).removeprefix("torch."))

    @property
    def needs_compiling(self) -> bool:
        """Whether the first evaluation will take long, since the kernels are neither in this process nor in their folder."""
        from torchmdnet_ext.compiled.base import have_kernels

        return not all(have_kernels(self._kernels, self._dtype))
