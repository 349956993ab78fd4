"""Write a small file of each format in the version that this code writes, and the values that it must give when read.

    python tests/data/formats/make.py FOLDER

README.md says how a new version gets its files.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import mdtraj
import numpy as np
import torch
from safetensors import safe_open

from openmm_geomgnn import Encoder
from openmm_geomgnn.conformers.build import Build, LabelledSource, build
from openmm_geomgnn.conformers.sources import SOURCES
from openmm_geomgnn.cv import FitSettings, distill, fit_cv
from openmm_geomgnn.cv.distillation import DistillSettings
from openmm_geomgnn.representation.embed_trajectories import EmbedSettings, embed_trajectories
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.checkpoint import NAME as CHECKPOINT
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.sampling.runner import Runner
from openmm_geomgnn.sampling.systems import SystemSettings
from openmm_geomgnn.sampling.walker_spec import WalkerSpec
from torchmdnet_ext import registration
from torchmdnet_ext.checkpoints import read_denoiser
from torchmdnet_ext.datasets.conformers import Conformers, write_conformers
from torchmdnet_ext.heads.noise import EquivariantNoise

HERE = Path(__file__).resolve().parent
PDB = HERE / "ala2.pdb"  # alanine dipeptide: two frames, at which every value in the JSON files was computed
PROBE = mdtraj.load(str(PDB))
Z = np.array([atom.element.atomic_number for atom in PROBE.topology.atoms])
ANGSTROM = 10 * np.round(PROBE.xyz.astype(np.float64), 4)
FRAGMENT = 6  # atoms: the cap ACE, all that encoders are compared on
NETWORK = {
    "model": "smooth-equivariant-transformer",
    "embedding_dimension": 8,
    "num_layers": 1,
    "num_rbf": 6,
    "num_heads": 2,
    "max_z": 9,
    "cutoff_lower": 0.0,
    "cutoff_upper": 5.0,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "attn_activation": "silu",
    "distance_influence": "both",
    "neighbor_embedding": False,
}
OPES_SETTINGS = {"barrier": 30.0, "pace": 40, "sigma": 0.3}


def trajectory(n, seed, interval=1.0):
    """Alanine dipeptide, drifting and trembling: `n` frames `interval` ps apart."""
    rng = np.random.default_rng(seed)
    drift = 0.002 * np.cumsum(rng.normal(size=(n, 1, 1)), axis=0) * rng.normal(size=(1, PROBE.n_atoms, 3))
    xyz = PROBE.xyz[:1] + 0.004 * rng.normal(size=(n, PROBE.n_atoms, 3)) + drift
    return mdtraj.Trajectory(xyz.astype(np.float32), PROBE.topology, time=interval * np.arange(n))


def random_encoder(head=False):
    torch.manual_seed(3)
    network = _disturbed(registration.representation_model({"precision": 32, **NETWORK}))
    return Encoder(network, NETWORK, {"loss": 0.4}, "tiny", _disturbed(EquivariantNoise(8)) if head else None)


def _disturbed(module):
    """Biases, which start at zero, get values that show in what is computed."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter += 0.1 * torch.randn_like(parameter)
    return module.requires_grad_(False).eval()


def encoder(folder):
    path = folder / "transformer.safetensors"
    random_encoder(head=True).save(path)
    read = Encoder.load(path)
    x, v = read.embed(Z[:FRAGMENT], ANGSTROM[:, :FRAGMENT], engine="eager")
    z, pos = torch.tensor(Z[:FRAGMENT]), torch.tensor(ANGSTROM[0, :FRAGMENT], dtype=torch.float32)
    with torch.no_grad():
        noise = read_denoiser(path)(z, pos, torch.zeros(FRAGMENT, dtype=torch.long))
    _note(path, training=read.training_information, x=_numbers(x), v=_numbers(v), noise=_numbers(noise))


def fitted(**settings):
    """A CV with a random encoder, and the trajectories that it was fitted to."""
    data = [trajectory(120, 1), trajectory(120, 2)]
    with tempfile.TemporaryDirectory() as temporary:
        source = f"{temporary}/tiny.safetensors"
        random_encoder().save(source)
        return fit_cv(data, PDB, FitSettings(lagtime=2.0, frame_interval=1.0, encoder=source, pca=4, **settings)), data


def cv(folder):
    linear, data = fitted(n_components=2)
    student = distill(linear, PDB, data, DistillSettings(hidden=6, distances=6, labels=100, epochs=2))
    mixer = {"mixer": "mlp", "mixer_settings": {"width": 6}}
    vampnet, _ = fitted(estimator="vampnet", training={"epochs": 2}, **mixer)
    for name, made in (("linear", linear), ("student", student), ("vampnet", vampnet)):
        path = folder / f"{name}.safetensors"
        made.save(path)
        psi = made.bind(PDB, engine="eager").compute(PROBE)
        scores = {key: value for key, value in made.training_information.items() if key.startswith("vamp2")}
        _note(path, psi=_numbers(psi), lag_time_ps=made.lagtime, training=scores)


def conformers(folder):
    """A shard with coordinates of 16 bits, version 1, and one whose molecule is too large for them, version 2."""
    for name, scale in (("narrow", 1.0), ("wide", 100.0)):
        path = folder / f"{name}.safetensors"
        given = [(Z, scale * ANGSTROM[0], "ala2"), (Z[:FRAGMENT], scale * ANGSTROM[1, :FRAGMENT], "ACE")]
        write_conformers(path, given, "two conformers, by hand")
        dataset = Conformers(file=path)
        _note(path, sources=dataset.sources, how=dataset.how, conformers=_conformers(dataset))


def conformer_index(folder):
    path = folder / "store"
    with tempfile.TemporaryDirectory() as temporary:
        trajectory(6, 5).save(f"{temporary}/a.xtc")
        shutil.copy(PDB, temporary)  # files hold the path
        source = SOURCES["trajectory"](topology=f"{temporary}/{PDB.name}", file=f"{temporary}/a.xtc")
        build(Build(path, (LabelledSource(source, "ala2"),)), processes=1)
    dataset = Conformers(path)
    _note(path, sources=dataset.sources, conformers=_conformers(dataset))


def embeddings(folder):
    path = folder / "store"
    with tempfile.TemporaryDirectory() as temporary:
        source = f"{temporary}/tiny.safetensors"
        random_encoder().save(source)
        trajectory(5, 6, interval=2.0).save(f"{temporary}/b.xtc")
        settings = EmbedSettings(encoder=source, tokens=TokenSpec(window="sequence", context=0), chunk=3)
        shutil.copy(PDB, temporary)
        store = embed_trajectories(f"{temporary}/{PDB.name}", [f"{temporary}/b.xtc"], path, settings, workers=1)
    arrays = {"tokens": store.tokens(0)[:], "positions": store.positions(0)[:], "times": store.times(0)}
    entry = store.trajectories[0]
    _note(path, name=entry["name"], sha256=entry["sha256"], **{name: _numbers(array) for name, array in arrays.items()})


def run(folder):
    """The folder of a run of 0.4 ps, biased along a linear CV."""
    path, bias = folder / "run", OPES(**OPES_SETTINGS)
    with tempfile.TemporaryDirectory() as temporary:
        cv_path = Path(temporary) / "linear.safetensors"
        fitted()[0].save(cv_path)
        settings = {"engine": "eager", "platform": "Reference", "seed": 7, "colvar_interval": 10}
        spec = WalkerSpec(str(PDB), SystemSettings(forcefield=("amber14-all.xml",)), cv_path=cv_path, **settings)
        Runner([spec], bias, path, 0.4).run()
    checkpoint = load_checkpoint(path / CHECKPOINT)
    at = checkpoint.bias["centres"][-1] + 0.1
    potential, slope = bias.bias(bias.from_arrays(checkpoint.bias), at)
    _note(
        path,
        opes=OPES_SETTINGS,
        step=checkpoint.step,
        bytes=[len(state) for state in checkpoint.walkers],
        bias={name: _numbers(array, 17) for name, array in checkpoint.bias.items()},
        heat={name: _numbers(array, 17) for name, array in checkpoint.heat.items()},
        at=_numbers(at, 17),
        potential=potential,
        slope=_numbers(slope, 17),
        written=asdict(checkpoint.written),
    )


MAKERS = {
    "cv": cv,
    "encoder": encoder,
    "conformers": conformers,
    "conformer_index": conformer_index,
    "embeddings": embeddings,
    "run": run,
}


def _conformers(dataset):
    sources = [dataset.sources[int(number)] for number in dataset.source]
    return [
        {"z": data.z.tolist(), "pos": _numbers(data.pos), "source": name}
        for data, name in zip(dataset, sources, strict=True)
    ]


def _numbers(array, digits=9):
    values = np.asarray(array, dtype=np.float64)
    return np.array([float(f"{value:.{digits}g}") for value in values.ravel()]).reshape(values.shape).tolist()


def version(path):
    """The version that a file or folder says it has."""
    described = [path / name for name in ("zarr.json", "index.json") if (path / name).is_file()]
    if described:
        content = json.loads(described[0].read_text(encoding="utf-8"))
        return content.get("attributes", content)["version"]
    with safe_open(path / CHECKPOINT if path.is_dir() else path, framework="numpy") as file:
        (header,) = file.metadata().values()
    return json.loads(header)["version"]


def _note(path, **values):
    """Put the version into the name of a file, and the values that were read from it into a JSON file beside it."""
    path = path.rename(path.with_name(f"{version(path)}-{path.name}"))
    path.with_suffix(".json").write_text(json.dumps(values) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    output = parser.parse_args().folder
    for kind, make in MAKERS.items():
        (output / kind).mkdir(parents=True)
        make(output / kind)
