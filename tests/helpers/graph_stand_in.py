"""What takes the place of a GPU in tests on machines without one."""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from openmm_geomgnn.cv.cuda_graph import GraphedFunction, Replay


class _Repeated:
    """A graph that is no recording: what it repeats is called again."""

    def __init__(self, call):
        self.replay = call


class StandIn:
    """Captures on the CPU: as on a GPU all replays read and write the same tensors, have the shapes of the capture, and the
    backward graph starts from what the forward graph left.

    Parameters
    ----------
    fixed_shapes : as in `GraphedFunction`

    Attributes
    ----------
    captures : int
        How often something was captured.
    """

    def __init__(self, fixed_shapes=contextlib.nullcontext):
        self.fixed_shapes = fixed_shapes
        self.captures = 0

    def __call__(self, function, x):
        self.captures += 1
        x = x.detach().clone().requires_grad_(True)
        y = function(x).detach().clone()
        weights, gradient, left = torch.ones_like(y), torch.zeros_like(x), []

        def forward():
            with self.fixed_shapes():
                left[:] = [function(x)]
            y.copy_(left[0].detach())

        def backward():
            gradient.copy_(torch.autograd.grad(left[0], x, weights, retain_graph=True)[0])

        return Replay(x, y, weights, gradient, _Repeated(forward), _Repeated(backward))


def as_on_a_gpu(bound, capture=None):
    """A bound CV that is evaluated as one on a GPU is, on the CPU; returns what captures."""
    fixed_shapes = bound.tokenizer.encoder.network.distance.every_pair
    capture = capture or StandIn(fixed_shapes)
    bound._function = GraphedFunction(bound.single, bound, fixed_shapes, capture)
    return capture


class Operators(TorchDispatchMode):
    """The names of the operators that are called within it, and of those that touch the CPU."""

    def __init__(self):
        super().__init__()
        self.names, self.on_the_cpu = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.append(str(function))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.on_the_cpu.append(str(function))
        return out
