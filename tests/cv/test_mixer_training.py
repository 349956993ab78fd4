"""Every mixer within the whole: trained as a VAMPnet, written and read with a CV, differentiated for its forces."""

import json

import mdtraj
import numpy as np
import pytest
import torch
from mixer_cases import LEARNED, R, random, small
from molecules import ala2, random_encoder
from protocol_texts import PROTOCOLS

from openmm_geomgnn.cli.fit import run_fit
from openmm_geomgnn.cli.settings.yaml_files import load_fit
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.mixers import MIXERS, make_mixer
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.koopman import train_vampnet
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows

pytestmark = pytest.mark.slow

CHANNELS = 4
EQUIVARIANT = ("equivariant-attention", "message-passing")


def slow_motion(frames, seed, decay=0.97):
    """(frames,) samples of an Ornstein-Uhlenbeck process of unit variance."""
    rng = np.random.default_rng(seed)
    values = [rng.normal()]
    while len(values) < frames:
        values.append(decay * values[-1] + np.sqrt(1 - decay**2) * rng.normal())
    return torch.tensor(values)


def rotations(angle, axis):
    """(F, 3, 3) rotations by angles (F,) about an axis (3,)."""
    x, y, z = (axis / axis.norm()).tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.matrix_exp(angle[:, None, None] * generator)


def tumbling(tokens, seed):
    """Frames of a molecule that turns as a whole, at random."""
    q, r = torch.linalg.qr(random(len(tokens), 3, 3, seed=seed))
    q = q * torch.sign(r.diagonal(dim1=1, dim2=2))[:, None]
    tokens[:, :, 1:] = torch.einsum("fij,frjh->frih", q * torch.det(q)[:, None, None], tokens[:, :, 1:])
    return tokens.float()


def scalars_that_move(frames, seed):
    """Tokens of which one scalar of residue 1 moves slowly, and its slow motion."""
    slow = slow_motion(frames, seed)
    tokens = random(R, 4, CHANNELS, seed=50) + 0.5 * random(frames, R, 4, CHANNELS, seed=seed)
    tokens[:, 1, 0, 2] = slow + 0.1 * tokens[:, 1, 0, 2]
    return tumbling(tokens, seed), slow


def residues_that_turn(frames, seed):
    """Tokens of which residue 2 turns slowly as a rigid body while the others keep still, and its slow motion."""
    slow = slow_motion(frames, seed)
    tokens = random(R, 4, CHANNELS, seed=51) + 0.05 * random(frames, R, 4, CHANNELS, seed=seed)
    tokens[:, 2, 1:] = rotations(0.6 * slow, torch.tensor([1.0, 2.0, 0.5])) @ tokens[:, 2, 1:]
    return tumbling(tokens, seed), slow


def correlation(kind, name, epochs):
    """Of the function that a VAMPnet finds with the slow motion, on tokens that it has not seen."""
    tokens = [kind(500, seed)[0] for seed in (1, 2, 3)]
    mixer = make_mixer(name, R, CHANNELS, **small(name))
    result = train_vampnet(mixer, tokens, 3, 1, epochs=epochs, batch_size=250, lr=1e-2, test_fraction=0)
    assert result.lobe.has_statistics and np.isfinite(result.history["validation"]).all()
    unseen, slow = kind(400, 9)
    return abs(np.corrcoef(result.transform(unseen)[:, 0], slow)[0, 1])


@pytest.mark.parametrize("name", LEARNED)
def test_finds_the_slow_scalar(name):
    assert correlation(scalars_that_move, name, epochs=7) > 0.85


@pytest.mark.parametrize("name", LEARNED)
def test_mixers_of_vectors_see_residues_turn(name):
    """The lengths of the vectors do not change: mixers of invariants of single tokens are blind to it."""
    if name in EQUIVARIANT:
        assert correlation(residues_that_turn, name, epochs=10) > 0.8
    else:
        assert correlation(residues_that_turn, name, epochs=3) < 0.3


@pytest.mark.parametrize("name", LEARNED)
def test_trained_twice_with_a_gradient_penalty_is_the_same(name):
    tokens = [scalars_that_move(60, seed)[0] for seed in (1, 2)]
    twins = [
        train_vampnet(
            make_mixer(name, R, CHANNELS, **small(name, chirality=True)),
            tokens,
            2,
            1,
            epochs=2,
            batch_size=50,
            gradient_penalty=0.05,
        )
        for _ in range(2)
    ]
    assert twins[0].history == twins[1].history
    np.testing.assert_array_equal(*(twin.transform(tokens[0]) for twin in twins))


@pytest.fixture(scope="module")
def molecule():
    topology = ala2().topology
    return topology, select_atoms(topology), random_encoder(seed=8)


@pytest.mark.parametrize("chirality", [False, True])
@pytest.mark.parametrize("name", MIXERS)
def test_collective_variable(name, chirality, molecule, tmp_path):
    """Its file gives the same values, and its gradient is that of the values."""
    topology, atoms, encoder = molecule
    windows = make_windows(topology, atoms)
    mixer = make_mixer(name, windows.n_tokens, encoder.hidden_channels, **small(name, chirality=chirality))
    frames = torch.tensor(ala2().xyz[:, atoms]).double() * 10 + 0.1 * random(12, len(atoms), 3)
    mixer.set_statistics(Tokenizer(encoder, windows).embed(frames))
    projection = np.random.default_rng(1).normal(size=(mixer.out_features, 2)) / np.sqrt(mixer.out_features)
    cv = CollectiveVariable(
        encoder, mixer, np.zeros(mixer.out_features), projection, [0.9, 0.5], residue_table(topology, atoms)
    )
    cv.save(tmp_path / "cv")
    again = CollectiveVariable.load(tmp_path / "cv")
    assert json.loads(json.dumps(mixer.settings)) == again.mixer.settings
    bound = again.bind(topology, "double", "eager")
    values = bound.compute_whole(frames)
    np.testing.assert_array_equal(values, cv.bind(topology, "double", "eager").compute_whole(frames))
    assert (values.std(axis=0) > 1e-4).all()

    direction, weights, step = random(len(atoms), 3, seed=2).numpy(), np.array([0.7, -1.2]), 1e-4
    pos = frames[0].numpy()
    _, vjp = bound.value_and_vjp(pos)
    ends = [bound.value_and_vjp(pos + sign * step * direction)[0] @ weights for sign in (1, -1)]
    gradient = vjp(weights)
    assert (gradient * direction).sum() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-6)
    # translations and rotations of the molecule pull on nothing
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cross(pos, gradient).sum(axis=0), 0, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in LEARNED if name not in ("mlp", "attention")])
def test_published_trajectories(name, shared_data):
    """A short fit to the basins of alanine dipeptide separates them."""
    folder = shared_data / "trajectories" / "ala2_plumed_masterclass"
    parts = [mdtraj.load(str(folder / f"unbiased_{k}.xtc"), top=str(folder / "ala2.pdb"), stride=20) for k in "AB"]
    settings = FitSettings(
        20.0,
        20.0,
        estimator="vampnet",
        mixer=name,
        mixer_settings={"width": 16, "readout": 16, "chirality": True},
        training={"epochs": 20, "batch_size": 40, "lr": 3e-3, "validation_fraction": 0.0},
    )
    cv = fit_cv(parts, folder / "ala2.pdb", settings)
    bound = cv.bind(folder / "ala2.pdb", engine="eager")
    left, right = (bound.compute(part)[:, 0] for part in parts)
    assert abs(left.mean() - right.mean()) > 1.8 and left.std() + right.std() < 0.8


def test_shipped_protocol(tmp_path, monkeypatch):
    """protocols/fit-vampnet.yaml, on fewer frames and for fewer epochs."""
    (tmp_path / "protocols").mkdir()
    (tmp_path / "runs/ala2-opes/unbiased").mkdir(parents=True)
    for index in range(2):
        xyz = ala2().xyz + 0.005 * random(60, 22, 3, seed=index).numpy()
        path = tmp_path / f"runs/ala2-opes/unbiased/trajectory.{index}.dcd"
        mdtraj.Trajectory(xyz, ala2().topology).save(str(path))
    path = tmp_path / "protocols/fit-vampnet.yaml"
    path.write_text((PROTOCOLS / "fit-vampnet.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    cv = run_fit(load_fit(path, {"cv.training.epochs": 2, "cv.lag": "1 ps"}))
    assert cv.mixer.name == "equivariant-attention" and cv.mixer.chirality
    again = CollectiveVariable.load(tmp_path / "ala2-vampnet.cv.safetensors")
    assert again.mixer.settings == cv.mixer.settings
