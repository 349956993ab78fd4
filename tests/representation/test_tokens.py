"""Residue tokens: pooled embeddings of windows, in parts, in chunks, and by compiled kernels."""

import numpy as np
import pytest
import torch
from molecules import peptide, random_encoder

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.representation.selection import select_atoms
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.representation.windows import make_windows


class TestTokens:
    topology = peptide([1, 2, 3, 4, 5])
    atoms = select_atoms(topology)
    pos = np.random.default_rng(4).normal(size=(6, 20, 3)) * 4

    @pytest.mark.parametrize("model", ["visnet", "smooth-equivariant-transformer"])
    @pytest.mark.parametrize("pooling", ["sum", "mean"])
    def test_are_the_pooled_embeddings_of_each_window_alone(self, model, pooling):
        encoder = random_encoder(model)
        windows = make_windows(self.topology, self.atoms, "sequence", 1)
        tokens = Tokenizer(encoder, windows, pooling).embed(self.pos).numpy()
        assert tokens.shape == (6, 5, 4, 16)
        for k in range(5):
            rows = windows.rows[windows.graph == k]
            x, v = encoder.embed(windows.z[rows], self.pos[:, rows])
            alone = np.concatenate([x[:, :, None], v], axis=2)[:, rows // 4 == k]
            pooled = alone.sum(axis=1) if pooling == "sum" else alone.mean(axis=1)
            np.testing.assert_allclose(tokens[:, k], pooled, atol=2e-5)

    def test_in_chunks_are_the_same(self, monkeypatch):
        tokenizer = Tokenizer(random_encoder(), make_windows(self.topology, self.atoms, "sequence", 1))
        expected, done = tokenizer.embed(self.pos), []
        monkeypatch.setattr("openmm_geomgnn.representation.encoder.CHUNK_PAIRS", 1)
        torch.testing.assert_close(tokenizer.embed(self.pos, done.append), expected, atol=1e-5, rtol=1e-5)
        assert sum(done) == 6 and len(done) > 2

    def test_wrong_settings_are_errors(self):
        windows = make_windows(self.topology, self.atoms)
        with pytest.raises(GeomGNNError, match="Unknown token pooling 'max'"):
            Tokenizer(random_encoder(), windows, "max")
        with pytest.raises(GeomGNNError, match="between 1 and 7 for this encoder, but 6 to 8"):
            Tokenizer(random_encoder(max_z=8), windows)

    @pytest.mark.parametrize("window", ["all", "sequence"])
    @pytest.mark.parametrize("pooling", ["sum", "mean"])
    def test_in_parts_are_the_same(self, monkeypatch, window, pooling):
        """A pass over some of the windows gives the tokens of those windows."""
        windows = make_windows(self.topology, self.atoms, window, 1)
        tokenizer = Tokenizer(random_encoder(), windows, pooling, "eager")
        expected = tokenizer(torch.as_tensor(self.pos).float())
        per_window = np.bincount(windows.graph[windows.pairs[0]])
        for chunk, parts in ((1, windows.n_graphs), (int(per_window[:2].sum()), None), (10**6, 1)):
            monkeypatch.setattr("openmm_geomgnn.representation.encoder.CHUNK_PAIRS", chunk)
            found = tokenizer._parts()
            assert parts is None or len(found) == parts
            assert [part.atoms.start for part in found[1:]] == [part.atoms.stop for part in found[:-1]]
            assert found[-1].atoms.stop == len(windows.rows) and found[-1].pairs.stop == len(windows.pairs[0])
            torch.testing.assert_close(tokenizer.embed(self.pos), expected, atol=2e-5, rtol=1e-5)


class TestCompiled:
    """The compiled kernels behind `embed` against the network itself."""

    topology = peptide([1, 2, 3, 4, 5])
    atoms = select_atoms(topology)
    pos = np.random.default_rng(4).normal(size=(6, 20, 3)) * 4

    @pytest.fixture(autouse=True)
    def always(self, monkeypatch):
        pytest.importorskip("numba")
        monkeypatch.setattr("openmm_geomgnn.representation.encoder.WORTH_COMPILING", 1)

    @pytest.mark.parametrize("window", ["all", "sequence"])
    @pytest.mark.parametrize("chunk", [1, 100, 10**6])
    def test_agree_with_the_network(self, monkeypatch, window, chunk):
        monkeypatch.setattr("openmm_geomgnn.representation.encoder.CHUNK_PAIRS", chunk)
        encoder, windows, done = random_encoder(), make_windows(self.topology, self.atoms, window, 1), []
        exact = Tokenizer(random_encoder().double(), windows).embed(self.pos)
        tokenizer = Tokenizer(encoder, windows)
        found = tokenizer.embed(self.pos, done.append)
        assert tokenizer._compiled is not None and sum(done) == 6 and found.dtype == torch.float32
        eager = Tokenizer(encoder, windows, engine="eager")
        assert (found - exact).norm() < 1e-5 * exact.norm()
        assert (found - eager.embed(self.pos)).abs().max() < 1e-5 * exact.abs().max() and eager._compiled is None

    def test_follow_the_parameters_of_the_encoder(self):
        encoder = random_encoder()
        tokenizer = Tokenizer(encoder, make_windows(self.topology, self.atoms))
        before, compiled = tokenizer.embed(self.pos), tokenizer._compiled
        assert torch.equal(tokenizer.embed(self.pos), before) and tokenizer._compiled is compiled
        with torch.no_grad():
            encoder.network.out_norm.weight.mul_(2)
            encoder.network.out_norm.bias.mul_(2)
        torch.testing.assert_close(tokenizer.embed(self.pos)[:, :, 0], 2 * before[:, :, 0])

    def test_are_left_alone_for_few_frames_and_double_precision(self, monkeypatch):
        windows = make_windows(self.topology, self.atoms)
        double = Tokenizer(random_encoder().double(), windows)
        assert double.embed(self.pos).dtype == torch.float64 and double._compiled is None
        monkeypatch.setattr(
            "openmm_geomgnn.representation.encoder.WORTH_COMPILING", 6 * 190 + 1
        )  # pairs of 20 atoms in 6 frames
        few = Tokenizer(random_encoder(), windows)
        few.embed(self.pos)
        assert few._compiled is None

    def test_embed_atoms_too(self):
        z = np.random.default_rng(0).choice([1, 6, 7, 8], 20)
        x, v = random_encoder().embed(z, self.pos)
        exact_x, exact_v = random_encoder().double().embed(z, self.pos)
        eager_x, _ = random_encoder().embed(z, self.pos, "eager")
        assert x.shape == (6, 20, 16) and np.abs(x - exact_x).max() < 1e-5 * np.abs(exact_x).max()
        assert v.shape == (6, 20, 3, 16) and np.abs(v - exact_v).max() < 1e-5 * np.abs(exact_v).max()
        assert (x != eager_x).any()  # the kernels were used, and not where they were not wanted
        one, _ = random_encoder().embed(z, self.pos[2])
        assert one.shape == (20, 16) and np.abs(one - exact_x[2]).max() < 1e-5 * np.abs(exact_x).max()

    def test_positions_that_are_not_finite_give_no_numbers(self):
        pos = self.pos.copy()
        pos[2, 3] = np.nan
        found = Tokenizer(random_encoder(), make_windows(self.topology, self.atoms)).embed(pos)
        assert found[2].isnan().all() and found[[0, 1, 3, 4, 5]].isfinite().all()


def test_a_thousand_residues_are_tokens_in_bounded_passes():
    """No pass has many more pairs than one window; the same 5 residues in 200 chains have the same tokens."""
    topology = peptide(*[[1, 2, 3, 4, 5]] * 200)
    atoms = select_atoms(topology)
    windows = make_windows(topology, atoms, "sequence", 1)
    assert windows.n_tokens == 1000
    tokenizer = Tokenizer(random_encoder(), windows, engine="eager")
    largest = max(part.pairs.stop - part.pairs.start for part in tokenizer._parts())
    assert largest <= 4000 and tokenizer.frames_per_pass == 1
    one = np.random.default_rng(4).normal(size=(20, 3)) * 4
    tokens = tokenizer.embed(np.tile(one, (200, 1))[None]).view(200, 5, 4, 16)
    torch.testing.assert_close(tokens, tokens[:1].expand_as(tokens), atol=1e-4, rtol=1e-5)
