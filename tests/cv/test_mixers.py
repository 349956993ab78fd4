"""One suite that every token mixer must pass."""

import json

import pytest
import torch
from mixer_cases import CASES, LEARNED, SMALL, F, H, R, random, raw_tokens, ready
from toy_mixer import ToyMixer, ToySettings

from openmm_geomgnn.cv.mixers import MIXERS, Mixer, MixerSettings, invariants, make_mixer, mixer_settings
from openmm_geomgnn.cv.mixers.message_passing import sequence_graph
from openmm_geomgnn.cv.mixers.token_merging import sequence_blocks
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.testing import MixerSuite


def test_every_setting_that_sizes_a_mixer_is_small_here():
    """A new mixer's default size would slow this suite down."""
    common = {"pool", "seed", "chirality", "assignment"}
    assert set().union(*map(mixer_settings, MIXERS)) - common == set(SMALL)


class TestEveryMixer(MixerSuite):
    """As they are registered, small, in all the ways that any of them can be set up."""

    tokens, channels = R, H

    @pytest.fixture(params=CASES)
    def mixer(self, request):
        return ready(request.param)

    def rebuilt(self, mixer):
        return make_mixer(**json.loads(json.dumps(mixer.settings)))


class TestAMixerOfAnotherPackage(MixerSuite):
    def make(self, n_tokens, hidden_channels, **settings):
        return ToyMixer(n_tokens, hidden_channels, ToySettings(width=12, readout=10, out_features=4, **settings))


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
