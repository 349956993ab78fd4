"""One suite that every token mixer must pass."""

import json

import pytest
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.mixers import MIXERS, Mixer, invariants, make_mixer

R, H, F = 5, 6, 7
CASES = {
    "none": {},
    "mlp": {"width": 12, "readout": 10, "out_features": 4},
    "mlp-mean": {"width": 12, "readout": 10, "out_features": 4, "pool": "mean", "layers": 1, "seed": 3},
    "attention": {"width": 12, "heads": 3, "feedforward": 16, "readout": 10, "out_features": 4},
    "attention-mean": {"width": 12, "heads": 2, "layers": 1, "feedforward": 16, "out_features": 3, "pool": "mean"},
}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def raw_tokens(frames=F, seed=0, dtype=torch.float64):
    """Tokens like a network's: sizes differ by channel and residue, fluctuations are small beside them."""
    size = torch.logspace(-2, 1, H, dtype=torch.float64)
    offset = 5 * random(R, 4, H, seed=99) * size
    return (offset + random(frames, R, 4, H, seed=seed) * size).to(dtype)


@pytest.fixture(params=CASES)
def mixer(request):
    name = request.param.split("-")[0]
    mixer = make_mixer(name, R, H, **CASES[request.param]).double()
    mixer.set_statistics(raw_tokens(200, seed=5))
    return mixer


def test_cases_cover_the_registry():
    assert {case.split("-")[0] for case in CASES} == set(MIXERS)


class TestEveryMixer:
    def test_shape_and_none_of_it_constant(self, mixer):
        chi = mixer(raw_tokens())
        assert chi.shape == (F, mixer.out_features) and chi.dtype == torch.float64
        assert (chi.std(0) > 1e-6).all()

    @pytest.mark.parametrize("seed", range(4))
    def test_invariant_under_rotations_and_reflections_of_the_vectors(self, mixer, seed):
        q, _ = torch.linalg.qr(random(3, 3, seed=seed))
        if seed % 2:
            q = -q
        tokens = raw_tokens()
        turned = torch.cat([tokens[:, :, :1], torch.einsum("ij,frjh->frih", q, tokens[:, :, 1:])], 2)
        torch.testing.assert_close(mixer(turned), mixer(tokens), atol=1e-11, rtol=1e-11)

    def test_depends_on_scalars_and_on_vectors_of_every_token(self, mixer):
        tokens = raw_tokens().requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(tokens).square().sum(), tokens)
        assert (gradient[:, :, 0].abs().amax((0, 2)) > 1e-8).all()
        assert (gradient[:, :, 1:].abs().amax((0, 2, 3)) > 1e-8).all()

    def test_what_is_masked_has_no_influence(self, mixer):
        mask = torch.ones(F, R, dtype=torch.bool)
        mask[:, 3], mask[2, 0] = False, False
        tokens = raw_tokens()
        garbage = tokens.clone()
        garbage[~mask] = 1e6
        nan = tokens.clone()
        nan[~mask] = float("nan")
        chi = mixer(tokens, mask)
        torch.testing.assert_close(mixer(garbage, mask), chi, atol=0, rtol=0)
        nan.requires_grad_()
        chi_nan = mixer(nan, mask)
        torch.testing.assert_close(chi_nan, chi, atol=0, rtol=0)
        (gradient,) = torch.autograd.grad(chi_nan.square().sum(), nan)
        assert torch.isfinite(gradient).all() and (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
        assert (chi - mixer(tokens)).abs().max() > 1e-6
        torch.testing.assert_close(mixer(tokens, torch.ones_like(mask)), mixer(tokens), atol=1e-13, rtol=1e-13)

    def test_batch_is_single(self, mixer):
        tokens = raw_tokens()
        mask = torch.ones(F, R, dtype=torch.bool)
        mask[1, 2:] = False
        batch = mixer(tokens, mask)
        for k in range(F):
            torch.testing.assert_close(mixer(tokens[k : k + 1], mask[k : k + 1]), batch[k : k + 1], atol=1e-12,
                                       rtol=1e-12)
        assert mixer(tokens[:0]).shape == (0, mixer.out_features)

    def test_float32_is_float64_to_its_precision(self, mixer):
        tokens = raw_tokens()
        double = mixer(tokens)
        single = mixer.float()(tokens.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, atol=2e-4, rtol=2e-4)

    def test_gradients_are_derivatives(self, mixer):
        tokens = raw_tokens(2).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: mixer(t)[:, :6], tokens, atol=1e-6, rtol=1e-4)

    def test_second_derivatives_exist(self, mixer):
        """A gradient penalty differentiates the gradient."""
        tokens, direction = raw_tokens(2), random(2, R, 4, H, seed=8)

        def slope(t):
            t = t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(mixer(t).square().mean(), t, create_graph=True)
            return t, (gradient * direction).sum()

        t, value = slope(tokens)
        (second,) = torch.autograd.grad(value, t)
        step = 1e-5 * random(2, R, 4, H, seed=9)
        difference = (slope(tokens + step)[1] - slope(tokens - step)[1]).item() / 2
        assert (second * step).sum().item() == pytest.approx(difference, rel=1e-4, abs=1e-12)

    def test_smooth_where_vectors_vanish(self, mixer):
        tokens = raw_tokens()
        tokens[:, 1, 1:] = 0
        tokens.requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(tokens).sum(), tokens)
        assert torch.isfinite(gradient).all()

    def test_rebuilt_from_settings_and_weights(self, mixer):
        settings = json.loads(json.dumps(mixer.settings))
        assert settings["name"] == mixer.name and settings == mixer.settings
        twin = make_mixer(**settings).double()
        twin.load_state_dict(mixer.state_dict())
        assert twin.has_statistics and twin.out_features == mixer.out_features
        torch.testing.assert_close(twin(raw_tokens()), mixer(raw_tokens()), atol=0, rtol=0)

    def test_deterministic_in_training_and_evaluation(self, mixer):
        tokens = raw_tokens()
        chi = mixer.train()(tokens)
        torch.testing.assert_close(mixer.eval()(tokens), chi, atol=0, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(mixer(tokens), chi, atol=0, rtol=0)

    def test_construction_leaves_torchs_generator_alone(self, mixer):
        state = torch.random.get_rng_state()
        twin = make_mixer(**mixer.settings)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(1234)
        for a, b in zip(twin.parameters(), make_mixer(**mixer.settings).parameters(), strict=True):
            assert torch.equal(a, b)

    def test_shapes_that_do_not_fit_are_refused(self, mixer):
        tokens = raw_tokens()
        for bad in (tokens[:, :4], tokens[..., :5], tokens[:, :, :3], tokens[0]):
            with pytest.raises(GeomGNNError, match=f"frames, {R}, 4, {H}"):
                mixer(bad)
        with pytest.raises(GeomGNNError, match="mask must be bool"):
            mixer(tokens, torch.ones(F, R))
        with pytest.raises(GeomGNNError, match="no token at all"):
            mixer(tokens, torch.zeros(F, R, dtype=torch.bool))


@pytest.mark.parametrize("name", ["mlp", "attention"])
class TestLearnedMixers:
    def test_statistics_standardise_the_invariants(self, name):
        mixer = make_mixer(name, R, H).double()
        tokens = raw_tokens(300, seed=1)
        assert not mixer.has_statistics
        mixer.set_statistics([tokens[:100], tokens[100:].numpy()])
        z = mixer.standardise(invariants(tokens))
        torch.testing.assert_close(z.mean(0), torch.zeros(R, 2 * H, dtype=torch.float64), atol=1e-10, rtol=0)
        torch.testing.assert_close(z.std(0, correction=0), torch.ones(R, 2 * H, dtype=torch.float64))

    def test_statistics_are_set_once(self, name):
        mixer = make_mixer(name, R, H)
        mixer.set_statistics(raw_tokens(20))
        with pytest.raises(GeomGNNError, match="already"):
            mixer.set_statistics(raw_tokens(20))

    def test_statistics_leave_out_masked_tokens_and_survive_flat_features(self, name):
        tokens = raw_tokens(50, seed=2)
        tokens[:, 0, 0, 0] = 3.0
        mask = torch.ones(50, R, dtype=torch.bool)
        mask[:20, 2], mask[:, 4] = False, False
        garbage = tokens.clone()
        garbage[~mask] = float("nan")
        a, b = make_mixer(name, R, H).double(), make_mixer(name, R, H).double()
        a.set_statistics(tokens, mask)
        b.set_statistics([garbage[:30], garbage[30:]], [mask[:30], mask[30:]])
        torch.testing.assert_close(a.standardise.std, b.standardise.std)
        torch.testing.assert_close(a.standardise.mean[2], invariants(tokens[20:, 2]).mean(0))
        assert 0 < a.standardise.std[0, 0] < 1e-3 and (a.standardise.std[4] == 1).all()
        assert torch.isfinite(a(tokens)).all()

    def test_statistics_of_bad_tokens_are_refused(self, name):
        tokens = raw_tokens(10)
        tokens[3, 1, 0, 0] = float("inf")
        with pytest.raises(GeomGNNError, match="not finite"):
            make_mixer(name, R, H).set_statistics(tokens)
        with pytest.raises(GeomGNNError, match="at least one frame"):
            make_mixer(name, R, H).set_statistics(tokens[:0])

    def test_dtypes_are_not_mixed_silently(self, name):
        with pytest.raises(GeomGNNError, match=r"float64.*float32.*mixer.double"):
            make_mixer(name, R, H)(raw_tokens())

    def test_seed_decides_the_weights(self, name):
        a, b, c = (make_mixer(name, R, H, seed=s) for s in (0, 0, 1))
        tokens = raw_tokens(dtype=torch.float32)
        assert torch.equal(a(tokens), b(tokens)) and not torch.equal(a(tokens), c(tokens))


def test_none_is_the_invariants_and_nothing_to_learn():
    mixer = make_mixer("none", R, H)
    tokens = raw_tokens()
    mixer.set_statistics(tokens)
    assert mixer.has_statistics and mixer.out_features == 2 * R * H
    assert not list(mixer.parameters()) and not mixer.state_dict()
    chi = mixer(tokens).reshape(F, R, 2 * H)
    torch.testing.assert_close(chi[..., :H], tokens[:, :, 0], atol=0, rtol=0)
    torch.testing.assert_close(chi[..., H:], tokens[:, :, 1:].norm(dim=2), atol=1e-3, rtol=0)


def test_attention_knows_positions_and_looks_across_residues():
    """Swapping two residues changes even the mean-pooled output; a residue's row depends on the others."""
    mixer = make_mixer("attention", R, H, pool="mean").double()
    tokens = raw_tokens()
    assert (mixer(tokens[:, [1, 0, 2, 3, 4]]) - mixer(tokens)).abs().max() > 1e-4
    layer = mixer.encoder[0]
    rows = random(1, R, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(rows, None)[0, 0].square().sum(), rows)
    assert (gradient[0, 1:].abs().amax(1) > 1e-8).all()


def test_unknown_names_get_a_suggestion():
    with pytest.raises(GeomGNNError, match="Did you mean 'attention'"):
        make_mixer("atention", R, H)
    with pytest.raises(GeomGNNError, match="Did you mean 'width'"):
        make_mixer("mlp", R, H, widht=3)
    with pytest.raises(GeomGNNError, match="'width' is unknown. Known: none"):
        make_mixer("none", R, H, width=3)
    with pytest.raises(GeomGNNError, match="Did you mean 'flatten'"):
        make_mixer("mlp", R, H, pool="flaten")


@pytest.mark.parametrize(("settings", "match"), [
    ({"width": 0}, "width must be"), ({"layers": 1.5}, "layers must be"), ({"heads": 5}, "multiple of heads"),
    ({"out_features": True}, "out_features must be"), ({"readout": -1}, "readout must be"),
])
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(GeomGNNError, match=match):
        make_mixer("attention", R, H, **settings)
    with pytest.raises(GeomGNNError, match="n_tokens must be"):
        make_mixer("none", 0, H)


def test_base_class_leaves_mixing_to_its_children():
    class Bare(Mixer):
        name = "bare"

    with pytest.raises(NotImplementedError):
        Bare(R, H)(raw_tokens())
