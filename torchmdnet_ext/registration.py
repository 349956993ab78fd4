"""How TorchMD-Net is extended. Each `extend_*` is called once, after its module was imported; one more is in `transfer`.

Models and heads become names that `create_model` understands, datasets become attributes of `torchmdnet.datasets`, our
settings become arguments of `torchmd-train`. Nothing of TorchMD-Net is changed for names that are not ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from torchmdnet_ext.arguments import did_you_mean

if TYPE_CHECKING:
    from torch import nn

TESTED = ((3, 1), (3, 2))  # from the first, up to but not including the second

# for each network: its module, its class and those of its settings of `torchmd-train` that not all have
NETWORKS = {
    "visnet": ("visnet", "ViSNet", ("num_heads", "lmax", "vecnorm_type", "trainable_vecnorm", "vertex")),
    "smooth-equivariant-transformer": (
        "equivariant_transformer",
        "SmoothEquivariantTransformer",
        ("num_heads", "attn_activation", "distance_influence", "neighbor_embedding", "vector_cutoff"),
    ),
    "smooth-tensornet": ("tensornet", "SmoothTensorNet", ("equivariance_invariance_group",)),
}
MODELS = tuple(NETWORKS)
HEADS = ("Noise",)
DATASETS = ("Conformers", "Denoising", "LabelledMolecules", "ExtendedXYZ", "Structures")
RESIDUES = "residues"  # a model without a head, see `models.residues`
CLASSIFICATION = "cross_entropy_loss"


def flag(text: str) -> bool:
    """A bool from the command line (`bool("false")` is True)."""
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false") from None


# name, type, default, help: the arguments that `torchmd-train` gets from us
ARGUMENTS = (
    (
        "smooth-cutoff",
        flag,
        True,
        "Multiply every message by a C2 envelope, so that features and forces are continuous at the cutoff",
    ),
    ("envelope-width", float, 1.0, "Length in angstrom over which that envelope falls from 1 to 0 before cutoff-upper"),
    ("lmax", int, 1, "Highest degree of the spherical harmonics, 1 or 2 (visnet)"),
    ("vecnorm-type", str, "none", "Normalisation of the vector features, none or max_min (visnet)"),
    ("trainable-vecnorm", flag, False, "Whether that normalisation has trainable weights (visnet)"),
    ("vertex", flag, False, "Whether to use vertex geometric features (visnet)"),
    (
        "lr-schedule",
        str,
        "plateau",
        "plateau: TorchMD-Net's own, by lr-patience and lr-factor. cosine: down to lr-min over all steps of num-epochs",
    ),
    ("encoder", str, None, "Start from the weights of this pre-trained encoder: its file, or a name such as et-64"),
    ("freeze-encoder", flag, False, "Train the head only, and leave the network as it is"),
    (
        "position-noise-scale",
        float,
        0.0,
        "Standard deviation in angstrom of noise on training positions, which a second head predicts; 0 is none",
    ),
    ("denoising-weight", float, 0.1, "Weight in the training loss of that noise's mean squared error"),
    ("network", str, None, "Class of the network on residues, package.module:Class (residues)"),
    ("network-arg", None, None, "Arguments of that class. Needs to be a dictionary (residues)"),
)
OWN_DEFAULTS = {name.replace("-", "_"): default for name, _, default, _ in ARGUMENTS}
_COMMON = (
    ("embedding_dimension", "hidden_channels"),
    ("num_layers", "num_layers"),
    ("num_rbf", "num_rbf"),
    ("max_z", "max_z"),
    ("cutoff_lower", "cutoff_lower"),
    ("cutoff_upper", "cutoff_upper"),
    ("rbf_type", "rbf_type"),
    ("trainable_rbf", "trainable_rbf"),
    ("activation", "activation"),
    ("smooth_cutoff", "smooth_cutoff"),
    ("envelope_width", "envelope_width"),
)
# those that are true or false; YAML files and checkpoints may hold anything
FLAGS = ("smooth_cutoff", "trainable_rbf", "trainable_vecnorm", "vertex", "neighbor_embedding", "vector_cutoff")
# every setting of `torchmd-train` on which one of our networks depends
NETWORK_SETTINGS = tuple(
    sorted({"model", *(theirs for theirs, _ in _COMMON), *(name for *_, own in NETWORKS.values() for name in own)})
)


def own_settings(model: str) -> tuple[str, ...]:
    """The settings of `torchmd-train` on which one of our networks depends, without `model` itself."""
    return (*(theirs for theirs, _ in _COMMON), *NETWORKS[model][2])


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError if a setting is not one of the known names: a YAML file may hold anything."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but it must be one of {', '.join(known)}.{did_you_mean(value, known)}")


@functools.cache
def check_version() -> None:
    """Warn, once, about a version of TorchMD-Net that this package was not tested with."""
    version = importlib.metadata.version("torchmd-net")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not TESTED[0] <= numbers < TESTED[1]:
        low, high = (".".join(map(str, bound)) for bound in TESTED)
        warnings.warn(
            f"openmm-geomgnn was tested with TorchMD-Net >= {low}, < {high}, but {version} is installed. If training or "
            f'loading fails, install a tested version: pip install "torchmd-net>={low},<{high}".',
            stacklevel=3,
        )


def representation_model(args: dict[str, Any]) -> nn.Module:
    """Build the network that `args` (the settings of `torchmd-train`) describe, one of `MODELS`.

    Raises ValueError if a boolean setting is not a boolean, or a name is unknown.
    """
    import torch

    # not torchmdnet.models.utils, which takes seconds to import
    from torchmdnet_ext.models.building_blocks import ACTIVATIONS, PRECISIONS, RADIAL_BASES

    # settings that checkpoints of older versions lack
    args = {**OWN_DEFAULTS, "vector_cutoff": False, "equivariance_invariance_group": "O(3)", **args}
    for name in FLAGS:
        if args.get(name, False) not in (True, False):
            raise ValueError(f"{name} is {args[name]!r}, but it must be true or false.")
    for name, known in (("activation", ACTIVATIONS), ("rbf_type", RADIAL_BASES)):
        check_choice(name, args[name], known)
    module, network, own = NETWORKS[args["model"]]
    if "attn_activation" in own:
        check_choice("attn_activation", args["attn_activation"], ACTIVATIONS)
    dtype = PRECISIONS[args["precision"]]
    box = args.get("box_vecs")
    settings = {ours: args[theirs] for theirs, ours in _COMMON}
    settings.update(dtype=dtype, box_vecs=None if box is None else torch.tensor(box, dtype=dtype))
    network = getattr(importlib.import_module(f"torchmdnet_ext.models.{module}"), network)
    return network(**settings, **{name: args[name] for name in own})


def create_model(args: dict[str, Any], prior_model: Any = None, mean: Any = None, std: Any = None) -> nn.Module:
    """`torchmdnet.models.model.create_model` for our networks, with any equivariant head."""
    from torchmdnet.models import model as upstream
    from torchmdnet.models import output_modules
    from torchmdnet.models.wrappers import AtomFilter

    from torchmdnet_ext.models.building_blocks import PRECISIONS

    check_choice("output_model", args["output_model"], output_modules.__all__)
    if args["output_model"] == "DipoleMoment" and args.get("lmax", 1) > 1 and args["model"] == "visnet":
        raise ValueError("output_model: DipoleMoment takes vectors, but with lmax 2 there is more: set lmax to 1.")
    network = representation_model(args)
    if args["atom_filter"] > -1:
        if args["derivative"]:
            raise ValueError("derivative and atom_filter cannot be used together: switch one of them off.")
        network = AtomFilter(network, args["atom_filter"])
    if args["prior_model"] and prior_model is None:
        prior_model = upstream.create_prior_models(args)
    dtype = PRECISIONS[args["precision"]]
    head = getattr(output_modules, "Equivariant" + args["output_model"])(
        args["embedding_dimension"],
        activation=args["activation"],
        reduce_op=args["reduce_op"],
        dtype=dtype,
        static_shapes=args.get("static_shapes", False),
        num_hidden_layers=args.get("output_mlp_num_layers", 0),
    )
    return upstream.TorchMD_Net(
        network,
        head,
        prior_model=prior_model or None,  # the trainer hands over an empty list for none
        mean=mean,
        std=std,
        derivative=args["derivative"],
        dtype=dtype,
    )


def residue_model(args: dict[str, Any]) -> nn.Module:
    """The model of the settings `network` and `network_arg` of `torchmd-train`; raises ValueError as `make_network` does."""
    from torchmdnet_ext.models.residues import Residues, make_network

    if args.get("derivative"):
        raise ValueError(f"model: {RESIDUES} has classes, not an energy: set derivative to false.")
    return Residues(make_network(args.get("network"), args.get("network_arg")))


def _append(names: list[str], new: Iterable[str]) -> None:
    names.extend(name for name in new if name not in names)


def extend_models(module: Any) -> None:
    """Extend `torchmdnet.models.model` with our models and heads."""
    check_version()
    from torchmdnet import models
    from torchmdnet.models import output_modules

    from torchmdnet_ext.heads.noise import EquivariantNoise
    from torchmdnet_ext.noisy_nodes import adapt

    # everything is looked up before anything is changed: a TorchMD-Net that lacks any of it stays unchanged
    model_names, head_names, upstream_create_model = models.__all_models__, output_modules.__all__, module.create_model

    @functools.wraps(upstream_create_model)
    def create(args: dict[str, Any], prior_model: Any = None, mean: Any = None, std: Any = None) -> nn.Module:
        if args["model"] == RESIDUES:
            return residue_model(args)
        ours = args["model"] in MODELS
        if args["output_model"] in HEADS and not ours and args["model"] != "equivariant-transformer":
            raise ValueError(
                f"output_model: {args['output_model']} needs vector features, which model: {args['model']} does not "
                f"provide. Choose one of {', '.join(MODELS)}, equivariant-transformer."
            )
        model = (create_model if ours else upstream_create_model)(args, prior_model, mean, std)
        return adapt(model, args) if ours else model

    _append(model_names, (*MODELS, RESIDUES))
    _append(head_names, HEADS)
    output_modules.EquivariantNoise = EquivariantNoise
    module.create_model = create
    # modules that took the name before us: TorchMD-Net was imported with the entry points of torch.backends disabled
    loaded: list[tuple[str, Any]] = list(sys.modules.items())
    for name, other in loaded:
        if name.startswith("torchmdnet.") and getattr(other, "create_model", None) is upstream_create_model:
            other.create_model = create


def extend_datasets(module: Any) -> None:
    """Extend `torchmdnet.datasets` with our datasets."""
    from torchmdnet_ext.datasets.conformers import Conformers
    from torchmdnet_ext.datasets.extended_xyz import ExtendedXYZ
    from torchmdnet_ext.datasets.labelled import LabelledMolecules
    from torchmdnet_ext.datasets.structures import Structures
    from torchmdnet_ext.denoising import Denoising

    _allow_saved_graphs()
    _append(module.__all__, DATASETS)
    module.LabelledMolecules = LabelledMolecules
    module.ExtendedXYZ = ExtendedXYZ
    module.Conformers = Conformers
    module.Denoising = Denoising
    module.Structures = Structures


def _allow_saved_graphs() -> None:
    """Let TorchMD-Net's MD17 and MD22 read graphs that they saved: from PyTorch 2.6 on their classes must be named."""
    import torch
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    torch.serialization.add_safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage])


def extend_data_module(module: Any) -> None:
    """Extend `torchmdnet.data`: of our datasets whole molecules are held out, with noise that stays the same.

    References and scale of labels follow the training molecules.
    """
    from torchmdnet_ext.data_module import check_held_out, is_ours, prepared
    from torchmdnet_ext.datasets.labelled import LabelledMolecules, standardise
    from torchmdnet_ext.denoising import fix_held_out_noise

    upstream_setup, upstream_standardize = module.DataModule.setup, module.DataModule._standardize

    @functools.wraps(upstream_setup)
    def setup(self: Any, stage: Any) -> Any:
        if not is_ours(self):
            return upstream_setup(self, stage)
        with prepared(self):
            upstream_setup(self, stage)
        check_held_out(self)
        fix_held_out_noise(self)
        if isinstance(self.dataset, LabelledMolecules):
            self.dataset.fit_references(self.idx_train)

    @functools.wraps(upstream_standardize)
    def standardize(self: Any) -> None:
        (standardise if isinstance(self.dataset, LabelledMolecules) else upstream_standardize)(self)

    module.DataModule.setup = setup
    module.DataModule._standardize = standardize


def extend_arguments(module: Any) -> None:
    """Extend `torchmdnet.scripts.train` with our settings as arguments of `torchmd-train`."""
    upstream_get_argparse = module.get_argparse

    @functools.wraps(upstream_get_argparse)
    def get_argparse() -> Any:
        parser = upstream_get_argparse()
        group = parser.add_argument_group(
            "openmm-geomgnn", f"Of {', '.join(MODELS)}. These keep every neighbour: max-num-neighbors does not concern them."
        )
        for name, kind, default, description in ARGUMENTS:
            group.add_argument(f"--{name}", type=kind, default=default, help=description)
        return parser

    module.get_argparse = get_argparse
