"""Networks that geom2vec pre-trained (Pengmei et al., arXiv 2409.19838): `.pth` files of tensors, without settings.

Sizes follow from the shapes of the tensors, and the cutoff from the radial basis. Other settings (the number of attention
heads, the degree of the spherical harmonics, the normalisation of vectors) are found by trial: with the right choice the
noise head predicts the noise in a molecule's positions, with other choices it does so badly or not at all.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmdnet_ext import registration
from torchmdnet_ext.files import PathLike
from torchmdnet_ext.models.envelopes import DEFAULT_WIDTH
from torchmdnet_ext.networks import Denoiser, Pretrained, build_head, build_network, load_torch_file, misfits, new_head

NETWORK = "representation_model."
HEADS = ("output_model_noise.", "vec_out.")
# other tensors in a file: the trainer's energies, and sums over the noise of the training
TRAINER = {
    "mean": (),
    "std": (),
    "pos_normalizer.acc_sum": (3,),
    "pos_normalizer.acc_squared_sum": (3,),
    "pos_normalizer.acc_count": (1,),
    "pos_normalizer.num_accumulations": (1,),
}
PRIOR = ("prior_model.initial_atomref", "prior_model.atomref.weight")  # (elements, 1); not in every file

# N-methylacetamide, to try a network on; angstrom
ELEMENTS = (6, 6, 8, 7, 6, 1, 1, 1, 1, 1, 1, 1)
POSITIONS = (
    *((1.886, -0.034, 0.028), (0.487, -0.133, -0.519), (0.261, -0.502, -1.666), (-0.494, 0.209, 0.384)),
    *((-1.888, 0.076, 0.045), (2.524, 0.462, -0.709), (1.917, 0.548, 0.953), (2.265, -1.040, 0.226)),
    *((-0.247, 0.300, 1.360), (-2.170, -0.977, 0.131), (-2.066, 0.418, -0.978), (-2.475, 0.673, 0.746)),
)
DRAWS = 3  # of noise
# losses there, relative to predicting no noise: geom2vec's networks have 0.3, and with a wrong choice at least 0.57
SURE = 0.45  # no other choice is tried
DENOISES = 0.6  # the largest accepted one, if every other choice has at least `CLEARLY` times that
CLEARLY = 1.2


def _transformer(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    keys, values = (any(f".{name}_proj." in key for key in tensors) for name in ("dk", "dv"))
    return {
        "attn_activation": "silu",
        "distance_influence": {(1, 1): "both", (1, 0): "keys", (0, 1): "values", (0, 0): "none"}[keys, values],
        "neighbor_embedding": any(name.startswith("neighbor_embedding.") for name in tensors),
        "vector_cutoff": False,
    }


def _visnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    norms = [tensor for name, tensor in tensors.items() if name.endswith(("vec_layernorm.weight", "vec_out_norm.weight"))]
    return {
        "trainable_vecnorm": any(bool((tensor != 1).any()) for tensor in norms),
        "vertex": any(".t_src_proj." in name for name in tensors),
    }


def _tensornet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"equivariance_invariance_group": "O(3)"}


def _three_parts_first(name: str, tensor: Tensor) -> Tensor:
    """Reorder factors of I, A and S from geom2vec's TensorNet, side by side in each channel, to TorchMD-Net's blocks."""
    if re.search(r"tensor_embedding\.linears_scalar\.1\.|^layers\.\d+\.linears_scalar\.2\.", name):
        return tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    return tensor


def _unchanged(name: str, tensor: Tensor) -> Tensor:
    return tensor


class Kind(NamedTuple):
    """How the tensors of one kind of network are recognised and read."""

    marker: str  # prefix of names that only this kind has
    layers: str  # prefix of the layers' names
    embedding: str  # tensor with a row for each element
    channels: tuple[str, ...]  # parts of the names of linear maps of the channels
    radial: tuple[str, ...]  # parts of the names of linear maps of the radial basis
    own: Callable[[Mapping[str, Tensor]], dict[str, Any]]  # tensors -> settings that not all kinds have
    choices: tuple[str, ...] = ()  # settings that cannot be inferred from its tensors
    convert: Callable[[str, Tensor], Tensor] = _unchanged  # name and tensor -> tensor of our network


_ATTENTION = ("q_proj.weight", "k_proj.weight", "o_proj.weight", "vec_proj.weight")
_FILTERS = ("dk_proj.weight", "dv_proj.weight")
KINDS = {
    "smooth-equivariant-transformer": Kind(
        "attention_layers.", "attention_layers.", "embedding.weight", _ATTENTION, _FILTERS, _transformer, ("num_heads",)
    ),
    "visnet": Kind(
        "vis_mp_layers.",
        "vis_mp_layers.",
        "embedding.weight",
        _ATTENTION,
        ("distance_proj.weight", "edge_proj.weight"),
        _visnet,
        ("num_heads", "lmax", "vecnorm_type"),
    ),
    "smooth-tensornet": Kind(
        "tensor_embedding.",
        "layers.",
        "tensor_embedding.emb.weight",
        ("linears_tensor.",),
        ("distance_proj", "linears_scalar.0.weight"),
        _tensornet,
        convert=_three_parts_first,
    ),
}


def _width(tensors: Mapping[str, Tensor], names: Iterable[str]) -> int:
    """The number of columns of most matrices with one of `names` in their names; one that differs is at fault."""
    columns = [t.shape[1] for name, t in tensors.items() if t.dim() == 2 and any(part in name for part in names)]
    return Counter(columns).most_common(1)[0][0] if columns else 0


def _rows(tensor: Tensor) -> int:
    return tensor.shape[0] if tensor.dim() else 0


def _cutoff(means: Tensor, betas: Tensor, origin: str) -> float:
    """Infer the cutoff in angstrom of an exponential-normal radial basis that was not trained.

    Its means are evenly spaced from exp(-cutoff) to 1 (Unke & Meuwly, J. Chem. Theory Comput. 15, 3678, 2019).
    """
    first, number = float(means[0]), len(means)
    even = torch.linspace(first, 1.0, number)
    width = torch.full_like(betas, (2 / number * (1 - first)) ** -2)
    if not (0 < first < 1 and torch.allclose(means, even, atol=1e-6) and torch.allclose(betas, width, rtol=1e-4)):
        raise ValueError(
            f"{origin} does not tell its cutoff: distance_expansion.means and .betas are not those of a radial basis that "
            "was left as it is made. Only files with trainable_rbf: false can be read."
        )
    cutoff = -math.log(first)
    rounded = round(cutoff, 3)  # within single precision
    return rounded if math.isclose(math.exp(-rounded), first, rel_tol=1e-5) else cutoff


def _settings(network: Mapping[str, Tensor], origin: str) -> tuple[Kind, dict[str, Any]]:
    """Infer settings and `Kind` of a network from its tensors, named without a prefix."""
    models = [model for model, kind in KINDS.items() if any(name.startswith(kind.marker) for name in network)]
    if len(models) != 1:
        raise ValueError(
            f"{origin} is not a network of geom2vec that this code knows: no {NETWORK}* tensors of one of "
            f"{', '.join(KINDS)}. Give one of its .pth files; our own are .safetensors and .ckpt."
        )
    kind = KINDS[models[0]]
    needed = (kind.embedding, "distance_expansion.means", "distance_expansion.betas")
    missing = [f"{NETWORK}{name}" for name in needed if name not in network]
    if missing:
        raise ValueError(f"{origin} is not complete: {' and '.join(missing)} is missing. Get the file again.")
    channels = _width(network, kind.channels)
    if not channels:
        raise ValueError(f"{origin} is not complete: all of {NETWORK}{kind.layers}* is missing. Get the file again.")
    layers = [re.match(re.escape(kind.layers) + r"(\d+)\.", name) for name in network]
    return kind, {
        "model": models[0],
        "embedding_dimension": channels,
        "num_layers": 1 + max((int(layer[1]) for layer in layers if layer), default=-1),
        "num_rbf": _width(network, kind.radial) or _rows(network["distance_expansion.means"]),
        "max_z": _rows(network[kind.embedding]),
        "cutoff_lower": 0.0,
        "rbf_type": "expnorm",
        "trainable_rbf": False,
        "activation": "silu",
        "smooth_cutoff": False,
        "envelope_width": DEFAULT_WIDTH,
        **kind.own(network),
    }


def _choices(names: Iterable[str], channels: int) -> list[dict[str, Any]]:
    """List all possible settings of those named, as dictionaries; geom2vec's defaults come first."""
    known: dict[str, list[Any]] = {
        "num_heads": sorted((n for n in range(1, channels + 1) if channels % n == 0), key=lambda n: abs(n - 8)),
        "lmax": [1, 2],
        "vecnorm_type": ["max_min", "none"],
    }
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(known[name] for name in names))]


def _loss(denoiser: nn.Module, sigma: float) -> float:
    """Compute the mean squared error per coordinate of a network's prediction of noise in a small molecule."""
    z, pos = torch.tensor(ELEMENTS).repeat(DRAWS), torch.tensor(POSITIONS).repeat(DRAWS, 1)
    noise = torch.randn(pos.shape, generator=torch.Generator().manual_seed(1))
    batch = torch.arange(DRAWS).repeat_interleave(len(ELEMENTS))
    with torch.no_grad():
        loss = (denoiser(z, pos + sigma * noise, batch) - noise).square().mean().item()
    return loss if math.isfinite(loss) else math.inf


def _decide(
    settings: Mapping[str, Any],
    names: Iterable[str],
    tensors: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    sigma: float,
    origin: str,
) -> dict[str, Any]:
    """Complete the settings with values of `names` that make the network denoise."""
    network_head = build_head(settings, head, origin)
    losses = []
    for choice in _choices(names, settings["embedding_dimension"]):
        network = build_network({**settings, **choice}, tensors, origin)
        losses.append((_loss(Denoiser(network, network_head), sigma), choice))
        if losses[-1][0] < SURE:
            return {**settings, **choice}
    losses.sort(key=lambda pair: pair[0])
    best, choice = losses[0]
    if best > DENOISES or len(losses) > 1 and losses[1][0] < CLEARLY * best:
        tried = f" with any {', '.join(names)}" if names else ""
        raise ValueError(
            f"{origin} does not do what it was trained for: it should predict the noise of {sigma:.2f} angstrom in the "
            f"positions of a small molecule, but its best loss{tried} is {best:.2f}, where predicting no noise is 1 and a "
            "trained network 0.3. Its tensors were changed, or its architecture is one that this code does not know."
        )
    return {**settings, **choice}


def _expected(settings: Mapping[str, Any], kind: Kind, prefix: str, content: Mapping[str, Any]) -> dict[str, Sequence[int]]:
    """Shapes, by name, of all tensors in a file with a network of these settings."""
    first = _choices(kind.choices, settings["embedding_dimension"])[0]
    network = registration.representation_model({**settings, **first, "cutoff_upper": 5.0, "precision": 32})
    shapes = {NETWORK + name: tensor.shape for name, tensor in network.state_dict().items() if name != "distance.box"}
    shapes.update({theirs: shape for theirs, (_, shape) in _head(settings, prefix).items()})
    shapes.update(TRAINER)
    if any(name in content for name in PRIOR):
        shapes.update({name: (settings["max_z"], 1) for name in PRIOR})
    return shapes


def _head(settings: Mapping[str, Any], prefix: str) -> dict[str, tuple[str, Sequence[int]]]:
    """Our name and the shape of each tensor of the noise head, by geom2vec's name."""
    head = new_head(settings["embedding_dimension"]).state_dict()
    return {prefix + name.replace(".layers.", "."): (name, tensor.shape) for name, tensor in head.items()}


def _noise_scale(content: Mapping[str, Any]) -> float:
    """Standard deviation, in angstrom, of the noise whose sums a file holds."""
    count = content["pos_normalizer.acc_count"].double()
    mean = content["pos_normalizer.acc_sum"].double() / count
    return (content["pos_normalizer.acc_squared_sum"].double() / count - mean.square()).mean().sqrt().item()


def read_geom2vec(path: PathLike) -> Pretrained:
    """Read a file of geom2vec's pre-training.

    Returns
    -------
    Pretrained
        `smooth_cutoff: false` is among its settings: geom2vec trains without an envelope.

    Raises
    ------
    ValueError
        If the file cannot be read without running code from it, a tensor is missing, left over or of the wrong shape, or the
        network does not denoise.
    """
    content = load_torch_file(path, "a network of geom2vec")
    if not isinstance(content, dict) or {str} != set(map(type, content)) or not all(map(torch.is_tensor, content.values())):
        raise ValueError(
            f"{path} is not a network of geom2vec: it is not a dictionary of tensors. Give one of its .pth files."
        )
    tensors = {name.removeprefix(NETWORK): tensor for name, tensor in content.items() if name.startswith(NETWORK)}
    kind, settings = _settings(tensors, str(path))
    prefix = next((prefix for prefix in HEADS if any(name.startswith(prefix) for name in content)), HEADS[0])
    problems = misfits(_expected(settings, kind, prefix, content), content)
    if settings["max_z"] <= max(ELEMENTS):
        problems.append(f"{NETWORK}{kind.embedding} has rows for {settings['max_z']} elements only")
    if problems:
        raise ValueError(
            f"{path} does not hold a whole network of geom2vec: {'; '.join(problems)}. Get the file again from where it was "
            "published."
        )
    settings["cutoff_upper"] = _cutoff(tensors["distance_expansion.means"], tensors["distance_expansion.betas"], str(path))
    tensors = {name: kind.convert(name, tensor) for name, tensor in tensors.items()}
    head = {ours: content[theirs] for theirs, (ours, _) in _head(settings, prefix).items()}
    sigma = _noise_scale(content)
    settings = _decide(settings, kind.choices, tensors, head, sigma, str(path))
    return Pretrained(settings, tensors, head, {"program": "geom2vec", "sigma": round(sigma, 4)})
