"""What is between the layers of a network, of every atom, recorded while it runs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # scalars (N, H) and vectors (N, 3, H)
_Read = TypeVar("_Read")


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
    """The layers of a network in their order: those that are known, else its only list; None if they cannot be told."""
    name = _name_of_layers(network)
    return None if name is None else cast(nn.ModuleList, network.get_submodule(name))


def recorded_states(network: nn.Module) -> AbstractContextManager[list[State]]:
    """Within the block, record the scalars and vectors that enter each layer of a network whenever it runs.

    The list has one state for each layer, that of the first being the embedding of the elements, and begins anew with each
    run; compiled kernels, which bypass the layers, record nothing. The output of the network, which its last normalisation
    follows, is not in it. It stays empty for networks of other packages.
    """
    name = _name_of_layers(network)
    if name not in _ENTERING:
        return nullcontext([])
    return _recorded(network, _ENTERING[name])


def recorded_features(network: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """As `recorded_states`, but the first argument of each layer as it is, (N, ...), also of networks of other packages."""
    return _recorded(network, lambda features, *rest: features)


def _name_of_layers(network: nn.Module) -> str | None:
    lists = [name for name, child in network.named_children() if isinstance(child, nn.ModuleList) and len(child)]
    found = [name for name in lists if name in _ENTERING] or lists
    return found[0] if len(found) == 1 else None


@contextmanager
def _recorded(network: nn.Module, read: Callable[..., _Read]) -> Iterator[list[_Read]]:
    records: list[_Read] = []
    handles = []
    for number, layer in enumerate(layers_of(network) or ()):

        def record(module: nn.Module, given: tuple[Any, ...], number: int = number) -> None:
            del records[number:]
            records.append(read(*given))

        handles.append(layer.register_forward_pre_hook(record))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
