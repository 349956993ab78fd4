"""A CV on a GPU: its value is one replay of a CUDA graph, its vector-Jacobian product another.

A network of a few hundred atoms is thousands of kernels of a few microseconds, and Python launches them more slowly than a
GPU runs them. A CUDA graph is launched as a whole. It repeats the same kernels at the same addresses, so no shape may depend
on the positions: every candidate pair of the fixed windows is kept, those beyond the cutoff with messages of an exact 0.

Captured are the whole CV (encoder, tokens, mixer, projection) and `torch.autograd.grad` of it. `torch.cuda.
make_graphed_callables` captures the same two graphs, but hands them back through autograd: a replay of the backward graph
then costs a trip through autograd's own thread, and it may overwrite what a second replay for other weights would read.
Here the forward pass keeps what the backward pass reads, so one value can have any number of products.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import nn

# y (d,), and what takes weights (d,) to the gradient of their product with y
ValueAndVJP: TypeAlias = tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]

WARM_UP = 3  # evaluations before the capture: libraries choose their kernels and get their memory in them


class EagerFunction:
    """Values and vector-Jacobian products of a function by autograd.

    Parameters
    ----------
    function : callable
        Takes x, a tensor, to y (d,).
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function

    def value_and_vjp(self, x: torch.Tensor) -> ValueAndVJP:
        """Value y (d,) at `x`, and what takes weights (d,) to the gradient of their product with y, of the shape of `x`."""
        x = x.detach().requires_grad_(True)
        y = self._function(x)

        def vjp(weights: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(y, x, weights, retain_graph=True)[0]

        return y.detach(), vjp


class Replay:
    """A function as two graphs that read and write the same tensors at each replay.

    Parameters
    ----------
    x, y, weights, gradient : tensors
        What the graphs read (x, weights) and write (y, gradient). `y` has to keep its history: the backward graph reads
        from the memory that it holds.
    forward, backward : torch.cuda.CUDAGraph
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        weights: torch.Tensor,
        gradient: torch.Tensor,
        forward: torch.cuda.CUDAGraph,
        backward: torch.cuda.CUDAGraph,
    ) -> None:
        self._x, self._y, self._weights, self._gradient = x, y, weights, gradient
        self._forward, self._backward = forward, backward
        self._ticket = 0  # number of the evaluation that the backward graph would start from
        self._lock = threading.Lock()

    def value_and_vjp(self, x: torch.Tensor) -> ValueAndVJP:
        """As that of `EagerFunction`."""
        with self._lock:
            ticket = self._run(x)
            y = self._y.detach().clone()

        def vjp(weights: torch.Tensor) -> torch.Tensor:
            with self._lock:
                if ticket != self._ticket:  # there was another evaluation since
                    self._run(x)
                self._weights.copy_(weights)
                self._backward.replay()
                return self._gradient.clone()

        return y, vjp

    def _run(self, x: torch.Tensor) -> int:
        self._ticket += 1
        with torch.no_grad():
            self._x.copy_(x)
        self._forward.replay()
        return self._ticket


def capture(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Replay:
    """The `Replay` of a function of tensors like `x`, which has to be on a CUDA device.

    Raises
    ------
    RuntimeError
        If the function does what a graph cannot hold: read from the GPU, say, or make a shape of what it read.
    """
    with torch.cuda.device(x.device):
        x = x.detach().clone().requires_grad_(True)
        stream = torch.cuda.Stream()  # the default stream cannot be captured
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                y = function(x)
                torch.autograd.grad(y, x, torch.ones_like(y))
        torch.cuda.current_stream().wait_stream(stream)
        weights = torch.ones_like(y)
        del y  # its memory is not that of the graphs
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # one pool of memory: the backward graph reads what the forward graph wrote. The threads of OpenMM may go on.
        settings: dict[str, Any] = {
            "pool": torch.cuda.graph_pool_handle(),
            "stream": stream,
            "capture_error_mode": "thread_local",
        }
        with torch.cuda.graph(forward, **settings):
            y = function(x)
        with torch.cuda.graph(backward, **settings):
            (gradient,) = torch.autograd.grad(y, x, weights, retain_graph=True)
    return Replay(x, y, weights, gradient, forward, backward)


class GraphedFunction:
    """Values and vector-Jacobian products of a function by replays of what was captured at its first evaluation.

    It is captured again if the memory of a parameter, or shape, precision or device of x are not those of the capture.
    Parameters that are changed where they are need no new capture: a replay reads them. Where the capture fails there is a
    warning, and the function is evaluated by autograd from then on.

    Parameters
    ----------
    function : callable
        As in `EagerFunction`.
    module : nn.Module
        Its parameters and buffers are what the function depends on besides x.
    fixed_shapes : callable, optional
        Makes a context manager within which no shape in the function depends on values.
    capture : callable, optional
        What captures.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        module: nn.Module,
        fixed_shapes: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
        capture: Callable[..., Replay] = capture,
    ) -> None:
        self._function, self._fixed_shapes, self._capture = function, fixed_shapes, capture
        self._places: list[tuple[dict[str, Any], str]] = [
            (holder, name)
            for part in module.modules()
            for holder in (part._parameters, part._buffers)
            for name, tensor in holder.items()
            if tensor is not None
        ]
        self._captured_for: tuple[Any, ...] | None = None
        self._evaluator: Any = None  # an EagerFunction or a Replay
        self._lock = threading.Lock()

    def value_and_vjp(self, x: torch.Tensor) -> ValueAndVJP:
        """As that of `EagerFunction`."""
        conditions = self._conditions(x)
        with self._lock:
            if self._captured_for != conditions:
                self._evaluator = self._make_evaluator(x)
                self._captured_for = conditions
            evaluator = self._evaluator
        return evaluator.value_and_vjp(x)

    def _conditions(self, x: torch.Tensor) -> tuple[Any, ...]:
        """What a replay takes for granted."""
        return x.shape, x.dtype, x.device, tuple(holder[name].data_ptr() for holder, name in self._places)

    def _make_evaluator(self, x: torch.Tensor) -> EagerFunction | Replay:
        self._evaluator = None  # its memory is free for the new one
        try:
            with self._fixed_shapes():
                return self._capture(self._function, x)
        except (RuntimeError, ValueError) as error:
            first: BaseException = error
            while first.__context__ is not None:  # the first of them says why, the last that a capture was under way
                first = first.__context__
            reason = " ".join(str(first).splitlines()[:1])
            warnings.warn(
                f"The CV could not be captured as a CUDA graph ({type(first).__name__}: {reason}). It is evaluated kernel "
                "by kernel instead, which gives the same values and takes longer.",
                RuntimeWarning,
                stacklevel=4,
            )
            return EagerFunction(self._function)
