"""One suite that every token mixer must pass."""

import json

import pytest
import torch
from mixer_cases import CASES, LEARNED, SMALL, F, H, R, random, raw_tokens, ready, turned

from openmm_geomgnn.cv.mixers import MIXERS, Mixer, MixerSettings, invariants, make_mixer, mixer_settings
from openmm_geomgnn.cv.mixers.message_passing import sequence_graph
from openmm_geomgnn.cv.mixers.token_merging import sequence_blocks
from openmm_geomgnn.errors import GeomGNNError


@pytest.fixture(params=CASES)
def mixer(request):
    return ready(request.param)


def test_every_setting_that_sizes_a_mixer_is_small_here():
    """A new mixer's default size would slow this suite down."""
    common = {"pool", "seed", "chirality", "assignment"}
    assert set().union(*map(mixer_settings, MIXERS)) - common == set(SMALL)


class TestEveryMixer:
    def test_shape_and_none_of_it_constant(self, mixer):
        chi = mixer(raw_tokens())
        assert chi.shape == (F, mixer.out_features) and chi.dtype == torch.float64
        assert (chi.std(0) > 1e-6).all()

    @pytest.mark.parametrize("seed", range(4))
    def test_invariant_under_rotations_and_reflections_of_the_vectors(self, mixer, seed):
        tokens = raw_tokens()
        chi = mixer(tokens)
        torch.testing.assert_close(mixer(turned(tokens, seed)), chi, atol=1e-11, rtol=1e-11)
        mirrored = mixer(turned(tokens, seed, mirrored=True))
        if mixer.chirality:
            assert ((mirrored - chi).abs().amax(1) > 1e-3).all()
        else:
            torch.testing.assert_close(mirrored, chi, atol=1e-11, rtol=1e-11)

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
            torch.testing.assert_close(mixer(tokens[k : k + 1], mask[k : k + 1]), batch[k : k + 1], atol=1e-12, rtol=1e-12)
        assert mixer(tokens[:0]).shape == (0, mixer.out_features)

    def test_float32_is_float64_to_its_precision(self, mixer):
        tokens = raw_tokens()
        double = mixer(tokens)
        single = mixer.float()(tokens.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, atol=2e-4, rtol=2e-4)

    def test_gradients_are_derivatives(self, mixer):
        tokens = raw_tokens(2).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: mixer(t)[:, :6], tokens, atol=1e-6, rtol=1e-4, fast_mode=True)

    def test_second_derivatives_exist(self, mixer):
        """A gradient penalty differentiates the gradient."""
        tokens, direction = raw_tokens(2), random(2, R, 4, H, seed=8)

        def slope(t):
            t = t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(mixer(t).square().mean(), t, create_graph=True)
            return t, (gradient * direction).sum()

        t, value = slope(tokens)
        (second,) = torch.autograd.grad(value, t)
        step = 2e-6 * random(2, R, 4, H, seed=9)
        difference = (slope(tokens + step)[1] - slope(tokens - step)[1]).item() / 2
        assert (second * step).sum().item() == pytest.approx(difference, rel=1e-4, abs=1e-12)

    def test_smooth_where_vectors_vanish(self, mixer):
        tokens = raw_tokens()
        tokens[:, 1, 1:] = 0
        tokens[0, :, 1:] = 0
        tokens.requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(tokens).sum(), tokens)
        assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("reach", [2e-3, 2.0])
    def test_gradient_has_no_jumps(self, mixer, reach):
        """Along lines on which vectors pass through zero, and far enough to choose other tokens if any were chosen:
        ten times finer steps, ten times smaller changes."""
        weights, middle = random(mixer.out_features), raw_tokens(1)
        direction = raw_tokens(1, seed=3) - middle
        if reach < 1:
            middle[:, 0, 1:] = 0

        def largest_change(points):
            t = torch.linspace(-reach, reach, points, dtype=torch.float64, requires_grad=True)
            chi = mixer(middle + t[:, None, None, None] * direction)
            (slope,) = torch.autograd.grad((chi @ weights).sum(), t)
            return slope.diff().abs().max()

        assert 0 < largest_change(2001) < 0.15 * largest_change(201)

    def test_number_of_tokens_is_fixed_or_free(self, mixer):
        tokens, wider = raw_tokens(), torch.cat([raw_tokens(), raw_tokens(seed=4)[:, :3]], 1)
        if mixer.n_tokens is not None:
            with pytest.raises(GeomGNNError, match=f"frames, {R}, 4, {H}"):
                mixer(wider)
            return
        assert mixer(wider).shape == (F, mixer.out_features) and mixer(tokens[:, :1]).isfinite().all()
        mask = torch.arange(R + 3).expand(F, -1) < R
        torch.testing.assert_close(mixer(wider, mask), mixer(tokens), atol=1e-11, rtol=1e-11)

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

    @pytest.mark.slow
    def test_shapes_that_do_not_fit_are_refused(self, mixer):
        tokens = raw_tokens()
        for bad in (tokens[:, :0], tokens[..., :5], tokens[:, :, :3], tokens[0]):
            with pytest.raises(GeomGNNError, match=f"frames, {mixer.n_tokens or 'any'}, 4, {H}"):
                mixer(bad)
        with pytest.raises(GeomGNNError, match="mask must be bool"):
            mixer(tokens, torch.ones(F, R))
        with pytest.raises(GeomGNNError, match="no token at all"):
            mixer(tokens, torch.zeros(F, R, dtype=torch.bool))


@pytest.mark.parametrize("name", LEARNED)
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

    def test_statistics_of_any_number_of_tokens_are_those_of_all(self, name):
        tokens, mask = raw_tokens(40, seed=3), torch.ones(40, R, dtype=torch.bool)
        mask[:30, 1], mask[5:, 4] = False, False
        garbage = tokens.masked_fill(~mask[..., None, None], float("nan"))
        mixer = make_mixer(name, None, H, pool="mean").double()
        mixer.set_statistics([garbage[:7], garbage[7:]], [mask[:7], mask[7:]])
        features = invariants(tokens)[mask]
        torch.testing.assert_close(mixer.standardise.mean[0], features.mean(0))
        torch.testing.assert_close(mixer.standardise.std[0], features.std(0, correction=0))
        if mixer.scale is not None:
            torch.testing.assert_close(mixer.scale.rms, features[:, H:].square().mean(0).sqrt())

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
    with pytest.raises(GeomGNNError, match="width is no setting of mixer 'none'. Known: chirality, pool"):
        make_mixer("none", R, H, width=3)
    with pytest.raises(GeomGNNError, match="Did you mean 'flatten'"):
        make_mixer("mlp", R, H, pool="flaten")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"width": 0}, "width must be"),
        ({"layers": 1.5}, "layers must be"),
        ({"heads": 5}, "multiple of heads"),
        ({"out_features": True}, "out_features must be"),
        ({"readout": -1}, "readout must be"),
        ({"seed": "one"}, "seed must be a whole number"),
        ({"seed": -1}, "seed must be"),
        ({"pool": ["mean"]}, "is unknown"),
    ],
)
def test_bad_settings_are_refused(settings, match):
    with pytest.raises(GeomGNNError, match=match):
        make_mixer("attention", R, H, **settings)
    with pytest.raises(GeomGNNError, match="n_tokens must be"):
        make_mixer("none", 0, H)


@pytest.mark.parametrize(
    ("name", "tokens", "settings", "match"),
    [
        ("none", R, {"pool": "attention"}, "nothing that trains them"),
        ("none", None, {}, "flatten is for a fixed number"),
        ("none", R, {"pool": 3}, "pool 3 is unknown. Known: attention, flatten, mean, sum"),
        ("mlp", None, {}, "use pool: mean, sum or attention"),
        ("mlp", R, {"chirality": 1}, "must be true or false but was 1"),
        ("equivariant-attention", R, {"vector_channels": 10}, "vector_channels must be a multiple of heads"),
        ("message-passing", R, {"neighbours": 0}, "neighbours .where it is not 'all'. must be a whole number"),
        ("message-passing", R, {"neighbours": "al"}, "was 'al'"),
        ("message-passing", R, {"neighbours": [2]}, "was .2."),
        ("token-merging", R, {"assignment": "block"}, "Did you mean 'blocks'"),
        ("token-merging", R, {"merged": 0}, "merged must be a whole number"),
        ("token-merging", None, {"assignment": "blocks"}, "use assignment: learned"),
    ],
)
def test_settings_of_one_mixer_that_do_not_fit(name, tokens, settings, match):
    with pytest.raises(GeomGNNError, match=match):
        make_mixer(name, tokens, H, **settings)


def test_the_graph_of_the_sequence():
    """Who sends to whom, and that a message stays within its graph."""
    mixer = make_mixer("message-passing", 7, H, layers=1, neighbours=2, pool="flatten").double()
    rows = []
    mixer.readout.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    tokens = random(1, 7, 4, H).requires_grad_()
    mixer(tokens)
    for receiver in range(7):
        (gradient,) = torch.autograd.grad(rows[0][0, receiver].sum(), tokens, retain_graph=True)
        reached = gradient[0].abs().sum((1, 2)) > 0
        assert reached.nonzero().flatten().tolist() == [k for k in range(7) if abs(k - receiver) <= 2]
    for neighbours in (6, "all"):
        sender, exists = sequence_graph(7, neighbours)
        others = [[k for k in range(7) if k != receiver] for receiver in range(7)]
        assert exists.all() and [sorted(row) for row in sender.tolist()] == others


def test_blocks_merge_neighbours_in_sequence():
    blocks = sequence_blocks(7, 3)
    assert blocks.argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2] and (blocks.sum(1) == 1).all()
    assert sequence_blocks(2, 5).sum() == 2


def test_base_class_leaves_mixing_to_its_children():
    class Bare(Mixer):
        name = "bare"

    with pytest.raises(NotImplementedError):
        Bare(R, H, MixerSettings())(raw_tokens())


def test_every_mixer_can_be_chosen_in_a_file_of_settings():
    """The names are written out there, where they are read without torch."""
    from openmm_geomgnn.cli.settings.sections import OUR_MIXERS, CVSection

    assert list(OUR_MIXERS) == list(MIXERS)
    assert CVSection(mixer_settings={"chirality": True}).mixer_settings == {"chirality": True}
    with pytest.raises(ValueError, match="heads is no setting of mixer 'none'. Known: chirality, pool"):
        CVSection(mixer_settings={"pool": "mean", "heads": 2})
