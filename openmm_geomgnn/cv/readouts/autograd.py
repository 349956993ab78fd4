"""The read-out of CVs with any mixer, by autograd."""

import torch


class TorchReadout:
    """Any mixer, by autograd."""

    needs_compiling = False

    def __init__(self, tokenizer, project):
        self._tokenizer, self._project = tokenizer, project

    def __call__(self, x, v):
        x, v = (torch.from_numpy(part).requires_grad_(True) for part in (x, v))
        psi = self._project(self._tokenizer.pool(x, v, 1))[0]

        def vjp(weights):
            return tuple(part.numpy() for part in torch.autograd.grad(psi, (x, v), torch.from_numpy(weights)))

        return psi.detach().numpy(), vjp
