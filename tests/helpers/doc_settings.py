"""Settings that a page shows, laid over a complete file of the same command and checked as the command checks them."""

from pathlib import Path

import yaml

from openmm_geomgnn.cli.settings.yaml_files import COMMANDS

DATA = {"topology": "topology.pdb", "trajectories": ["a.xtc", "b.xtc"]}
COMPLETE = {
    "run": "protocols/ala2-opes.yaml",
    "fit": DATA,
    "score": DATA,
    "embed": DATA,
    "distill": {"cv": "my.cv.safetensors", **DATA},
    "compute": {"cv": "my.cv.safetensors", **DATA},
    "data build": "protocols/build-conformers.yaml",
    "project": DATA,
    "label-noise": "protocols/label-noise.yaml",
    "scaling": "protocols/scaling.yaml",
    "supervised": "protocols/supervised-qm9.yaml",
    "forces": "protocols/forces-malonaldehyde.yaml",
    "diagnose": "protocols/diagnose.yaml",
    "transfer": "protocols/transfer-peptides.yaml",
    "structures": "protocols/structures-backbone.yaml",
    "torchmd-train": "protocols/pretrain.yaml",
}
MODELS = {command.removeprefix("geomgnn "): model for model, command in COMMANDS.items()}


def check_settings(kind, text, whole=None):
    """Check YAML text for the command `kind`: laid over a complete file, or, with the name of its file, as it stands."""
    shown = yaml.safe_load(text)
    assert isinstance(shown, dict), "no keys"
    complete = COMPLETE[kind]
    base = {} if whole else yaml.safe_load(Path(complete).read_text()) if isinstance(complete, str) else complete
    if kind == "fit" and "embeddings" in shown:
        base = {"topology": "topology.pdb"}
    if kind == "run" and "file" in (shown.get("cv") or {}):
        base.pop("cv")
    settings = merged(base, shown)
    if kind == "torchmd-train":
        unknown = settings.keys() - trainer_arguments()
        assert not unknown, f"torchmd-train does not know {', '.join(sorted(unknown))}"
    else:
        MODELS[kind].model_validate(settings, context={"folder": ".", "name": "page"})


def merged(base, over):
    """`over` laid over `base`, section by section."""
    sections = [key for key in base.keys() & over.keys() if isinstance(base[key], dict) and isinstance(over[key], dict)]
    return {**base, **over, **{key: merged(base[key], over[key]) for key in sections}}


def trainer_arguments():
    from torchmdnet.scripts.train import get_argparse

    return {action.dest for action in get_argparse()._actions}
