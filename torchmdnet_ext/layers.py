"""What is between the layers of a network: scalars and vectors of every atom, recorded while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # scalars (N, H) and vectors (N, 3, H)


def _of_pair(x: Tensor, vec: Tensor | None, *rest: Any) -> State:
    return x, x.new_zeros(len(x), 3, x.shape[1]) if vec is None else vec[:, :3]


def _of_tensors(tensors: Tensor, *rest: Any) -> State:
    """The scalar and the vector part of the components (N, 9, H) of TensorNet."""
    return tensors[:, 0], tensors[:, 1:4]


# name of a network's list of layers -> from what enters a layer to scalars and vectors
_ENTERING: dict[str, Callable[..., State]] = {
    "attention_layers": _of_pair,  # equivariant transformer
    "vis_mp_layers": _of_pair,  # ViSNet
    "layers": _of_tensors,  # TensorNet
}


def layers_of(network: nn.Module) -> nn.ModuleList | None:
    """The layers of a network in their order; None for one whose layers are not known."""
    found = [getattr(network, name) for name in _ENTERING if isinstance(getattr(network, name, None), nn.ModuleList)]
    return found[0] if len(found) == 1 else None


@contextmanager
def recorded_states(network: nn.Module) -> Iterator[list[State]]:
    """Within the block, record what enters each layer of a network whenever it runs.

    The list has one state for each layer, that of the first being the embedding of the elements, and begins anew with each
    run; compiled kernels, which bypass the layers, record nothing. The output of the network, which its last normalisation
    follows, is not in it. It stays empty where the layers are not known.
    """
    states: list[State] = []
    layers = layers_of(network)
    handles = []
    for name, read in _ENTERING.items():
        found: Any = getattr(network, name, None)
        if layers is not None and layers is found:
            for number, layer in enumerate(found):

                def record(module: nn.Module, given: tuple[Any, ...], number: int = number, read: Any = read) -> None:
                    del states[number:]
                    states.append(read(*given))

                handles.append(layer.register_forward_pre_hook(record))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
