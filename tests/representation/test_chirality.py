"""Mirror images: alike for scalars and vector norms, told apart by pseudoscalars."""

from dataclasses import replace

import mdtraj
import numpy as np
import pytest
import torch
from mixer_cases import small
from molecules import ALA2, ala2, random_encoder

from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.cv.mixers import MIXERS, invariants, make_mixer
from openmm_geomgnn.cv.mixers.features import norms, pseudoscalars
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.selection import residue_table, select_atoms
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows
from openmm_geomgnn.testing.numerics import relative
from torchmdnet_ext.checkpoints import write_encoder
from torchmdnet_ext.registration import MODELS

TOPOLOGY = ala2().topology
ATOMS = select_atoms(TOPOLOGY)
L_ALANINE = torch.tensor(ala2().xyz[:, ATOMS]).double() * 10  # angstrom
MIRROR = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
D_ALANINE = L_ALANINE * MIRROR


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestPseudoscalars:
    def test_they_are_the_triple_products_of_neighbouring_channels(self):
        v = random(2, 3, 5)
        a, b, c = (v.roll(-k, -1) for k in range(3))
        volume = (a * torch.linalg.cross(b, c, dim=1)).sum(1)
        size = (a.square() + b.square() + c.square()).sum(1)
        torch.testing.assert_close(pseudoscalars(v), volume / size, rtol=1e-5, atol=0)
        torch.testing.assert_close(pseudoscalars(-v), -pseudoscalars(v), rtol=0, atol=0)

    def test_of_one_size_with_the_norms(self):
        v = random(50, 3, 8)
        for scale in (0.1, 1.0, 10.0):
            assert 0.05 < pseudoscalars(scale * v).std() / norms(scale * v).std() < 1
            assert (pseudoscalars(scale * v).abs() < norms(scale * v).amax()).all()

    def test_their_slope_has_a_bound_however_short_the_vectors_are(self):
        for scale in (0.0, 1e-9, 1e-5, 1e-3, 0.1, 10.0):
            lengths = torch.logspace(-4, 0, 5, dtype=torch.float64)[:, None, None, None]
            v = (scale * lengths * random(5, 200, 3, 4)).requires_grad_()
            uneven = v * torch.tensor([1.0, 1e-3, 1.0, 1e-6], dtype=torch.float64)
            for vectors in (v, uneven):
                (slope,) = torch.autograd.grad(pseudoscalars(vectors).sum(), vectors)
                assert slope.abs().max() < 2


@pytest.mark.parametrize("model", ["et-64", *MODELS])
def test_of_real_tokens(model):
    """The vectors of every network are reflected with the atoms."""
    encoder = Encoder.load(model) if model == "et-64" else random_encoder(model)
    tokenizer = Tokenizer(encoder, make_windows(TOPOLOGY, ATOMS))
    left, right = (tokenizer(pos.float()).detach() for pos in (L_ALANINE, D_ALANINE))
    assert relative(left[:, :, 0], right[:, :, 0]) < 1e-5
    assert relative(norms(left[:, :, 1:]), norms(right[:, :, 1:])) < 1e-5
    odd = [pseudoscalars(tokens[:, :, 1:]) for tokens in (left, right)]
    assert relative(odd[0], -odd[1]) < 1e-4 and odd[0].abs().max() > 1e-3


COMPONENTS = 8  # how far apart one of random weights puts mirror images is chance


def mixed(name, chirality):
    """A CV of several components with random weights on et-64."""
    encoder = Encoder.load("et-64")
    windows = make_windows(TOPOLOGY, ATOMS)
    mixer = make_mixer(name, windows.n_tokens, encoder.hidden_channels, **small(name, chirality=chirality))
    frames = L_ALANINE + 0.2 * random(60, len(ATOMS), 3, seed=1)
    frames[::2] *= MIRROR
    tokens = Tokenizer(encoder, windows).embed(frames)
    mixer.set_statistics(tokens)
    mean = mixer(tokens).mean(0).detach().numpy()
    projection = np.random.default_rng(4).normal(size=(mixer.out_features, COMPONENTS))
    return CollectiveVariable(encoder, mixer, mean, projection, [0.5] * COMPONENTS, residue_table(TOPOLOGY, ATOMS))


@pytest.mark.parametrize("name", MIXERS)
def test_collective_variables_of_mirror_images(name):
    for chirality in (False, True):
        bound = mixed(name, chirality).bind(TOPOLOGY, engine="eager")
        left, right = (bound.compute_whole(pos)[0] for pos in (L_ALANINE, D_ALANINE))
        spread = bound.compute_whole(L_ALANINE + 0.05 * random(20, len(ATOMS), 3)).std(axis=0)
        apart = (abs(left - right) / spread).max()
        assert apart > 0.2 if chirality else apart < 1e-3


class TestFit:
    @pytest.fixture(scope="class")
    def hopping(self):
        """Trajectories of a molecule that turns into its mirror image now and then, and where it is."""
        parts, sides, rng = [], [], np.random.default_rng(2)
        for _ in range(2):
            side = np.cumprod(np.where(rng.random(150) < 0.05, -1.0, 1.0))
            xyz = np.repeat(ala2().xyz.astype(np.float64), 150, axis=0) + 0.004 * rng.normal(size=(150, 22, 3))
            xyz[:, :, 0] *= side[:, None]
            parts.append(mdtraj.Trajectory(xyz, TOPOLOGY))
            sides.append(side)
        return parts, np.concatenate(sides)

    @pytest.fixture(scope="class")
    def settings(self, tmp_path_factory):
        path, encoder = tmp_path_factory.mktemp("encoder") / "random.safetensors", random_encoder(seed=8)
        write_encoder(path, encoder.settings, encoder.network)
        return FitSettings(1.0, 1.0, encoder=str(path), pca=30, softening=0.0)

    def test_linear(self, hopping, settings):
        parts, side = hopping
        blind = settings
        seeing = replace(blind, mixer_settings={"chirality": True})
        found = {}
        for settings in (blind, seeing):
            cv = fit_cv(parts, ALA2, settings)
            psi = np.concatenate([cv.bind(ALA2, engine="eager").compute(part) for part in parts])[:, 0]
            found[settings is seeing] = abs(np.corrcoef(psi, side)[0, 1])
        assert found[False] < 0.3 and found[True] > 0.98

    def test_survives_its_file(self, hopping, settings, tmp_path):
        parts, _ = hopping
        cv = fit_cv(parts, ALA2, replace(settings, pca=5, mixer_settings={"chirality": True, "pool": "mean"}))
        cv.save(tmp_path / "cv")
        again = CollectiveVariable.load(tmp_path / "cv")
        assert again.mixer.chirality and again.mixer.settings == cv.mixer.settings
        values = [x.bind(ALA2, engine="eager").compute(parts[0]) for x in (cv, again)]
        np.testing.assert_array_equal(*values)


def test_too_few_vectors():
    with pytest.raises(GeomGNNError, match="three vector channels"):
        make_mixer("none", 3, 2, chirality=True)
    for name, settings in (("equivariant-attention", {"heads": 2}), ("message-passing", {})):
        with pytest.raises(GeomGNNError, match="vector_channels of 3 or more but it is 2"):
            make_mixer(name, 3, 8, chirality=True, vector_channels=2, **settings)
    with pytest.raises(GeomGNNError, match="chirality must be true or false but was 'yes'"):
        make_mixer("mlp", 3, 8, chirality="yes")


def test_a_cv_of_before_has_no_chirality():
    """Settings in files written before there was a choice."""
    mixer = make_mixer("none", n_tokens=3, hidden_channels=8)
    assert not mixer.chirality and mixer.out_features == 48
    tokens = random(2, 3, 4, 8)
    torch.testing.assert_close(mixer(tokens), invariants(tokens).flatten(1), rtol=0, atol=0)
