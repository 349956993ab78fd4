"""What every token mixer must do: invariance, masks, smoothness, the same numbers from a file."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from openmm_geomgnn.cv.mixers.base import Mixer
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.testing.numerics import orthogonal, randn

# case -> (whether the number of tokens is fixed, settings)
CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "fixed number of tokens": (True, {}),
    "chirality": (True, {"chirality": True}),
    "any number of tokens": (False, {"pool": "mean"}),
}


class MixerSuite:
    """Tests of a mixer, in double precision and with statistics.

    Attributes
    ----------
    tokens : int
        R, in a frame of the tests.
    channels : int
        H.

    Examples
    --------
    >>> from openmm_geomgnn.cv.mixers import make_mixer
    >>> from openmm_geomgnn.testing import MixerSuite
    >>> class TestAttention(MixerSuite):
    ...     def make(self, n_tokens, hidden_channels, **settings):
    ...         return make_mixer("attention", n_tokens, hidden_channels, width=12, heads=3, readout=10, **settings)
    """

    tokens, channels = 5, 6

    def make(self, n_tokens: int | None, hidden_channels: int, **settings: Any) -> Mixer:
        """A new mixer, at best a small one, with these `settings` besides those that the suite leaves to you.

        `settings` are chirality and pool, as in `openmm_geomgnn.cv.mixers.LearnedSettings`. Where a mixer is for a fixed
        number of tokens only, raise ``pytest.skip`` when n_tokens is None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define make().")

    @pytest.fixture(params=CASES)
    def mixer(self, request: pytest.FixtureRequest) -> Mixer:
        """The mixer in all the ways in which every mixer can be set up; override it for more of them."""
        fixed, settings = CASES[request.param]
        return self.ready(self.make(self.tokens if fixed else None, self.channels, **settings))

    # ---------------------------------------------------------------------------------------------------- what tests use

    def ready(self, mixer: Any) -> Mixer:
        """The mixer in double precision, with statistics."""
        mixer = mixer.double()
        mixer.set_statistics(self.raw_tokens(200, seed=5))
        return mixer

    def raw_tokens(self, frames: int = 7, seed: int = 0) -> Tensor:
        """Tokens (frames, R, 4, H) like a network's: sizes differ by channel and residue, fluctuations are small beside."""
        size = torch.logspace(-2, 1, self.channels, dtype=torch.float64)
        offset = 5 * randn(self.tokens, 4, self.channels, seed=99) * size
        return offset + randn(frames, self.tokens, 4, self.channels, seed=seed) * size

    def turned(self, tokens: Tensor, seed: int, mirrored: bool = False) -> Tensor:
        """The tokens of the molecule after a rotation, or after a rotation and a reflection."""
        q = orthogonal(seed, not mirrored)
        return torch.cat([tokens[:, :, :1], torch.einsum("ij,frjh->frih", q, tokens[:, :, 1:])], 2)

    def rebuilt(self, mixer: Any) -> Mixer:
        """A new mixer of the same settings, as they are read from a CV file."""
        settings = json.loads(json.dumps(mixer.settings))
        assert settings == mixer.settings and settings.pop("name") == mixer.name
        sizes = settings.pop("n_tokens"), settings.pop("hidden_channels")
        return type(mixer)(*sizes, mixer.settings_class(**settings))

    # ------------------------------------------------------------------------------------------------------------- tests

    def test_shape_and_none_of_it_constant(self, mixer: Any) -> None:
        chi = mixer(self.raw_tokens())
        assert chi.shape == (7, mixer.out_features) and chi.dtype == torch.float64
        assert (chi.std(0) > 1e-6).all()

    @pytest.mark.parametrize("seed", range(4))
    def test_invariant_under_rotations_and_reflections_of_the_vectors(self, mixer: Any, seed: int) -> None:
        tokens = self.raw_tokens()
        chi = mixer(tokens)
        torch.testing.assert_close(mixer(self.turned(tokens, seed)), chi, atol=1e-11, rtol=1e-11)
        mirrored = mixer(self.turned(tokens, seed, mirrored=True))
        if mixer.chirality:
            assert ((mirrored - chi).abs().amax(1) > 1e-3).all()
        else:
            torch.testing.assert_close(mirrored, chi, atol=1e-11, rtol=1e-11)

    def test_depends_on_scalars_and_on_vectors_of_every_token(self, mixer: Any) -> None:
        tokens = self.raw_tokens().requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(tokens).square().sum(), tokens)
        assert (gradient[:, :, 0].abs().amax((0, 2)) > 1e-8).all()
        assert (gradient[:, :, 1:].abs().amax((0, 2, 3)) > 1e-8).all()

    def test_what_is_masked_has_no_influence(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        mask[:, 3], mask[2, 0] = False, False
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

    def test_batch_is_single(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        mask[1, 2:] = False
        batch = mixer(tokens, mask)
        for k in range(len(tokens)):
            one = slice(k, k + 1)
            torch.testing.assert_close(mixer(tokens[one], mask[one]), batch[one], atol=1e-12, rtol=1e-12)
        assert mixer(tokens[:0]).shape == (0, mixer.out_features)

    def test_float32_is_float64_to_its_precision(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        double = mixer(tokens)
        single = mixer.float()(tokens.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, atol=2e-4, rtol=2e-4)

    def test_gradients_are_derivatives(self, mixer: Any) -> None:
        tokens = self.raw_tokens(2).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: mixer(t)[:, :6], tokens, atol=1e-6, rtol=1e-4, fast_mode=True)

    def test_second_derivatives_exist(self, mixer: Any) -> None:
        """A gradient penalty differentiates the gradient."""
        tokens = self.raw_tokens(2)
        direction = randn(*tokens.shape, seed=8)

        def slope(t: Tensor) -> tuple[Tensor, Tensor]:
            t = t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(mixer(t).square().mean(), t, create_graph=True)
            return t, (gradient * direction).sum()

        t, value = slope(tokens)
        (second,) = torch.autograd.grad(value, t)
        step = 2e-6 * randn(*tokens.shape, seed=9)
        difference = (slope(tokens + step)[1] - slope(tokens - step)[1]).item() / 2
        assert (second * step).sum().item() == pytest.approx(difference, rel=1e-4, abs=1e-12)

    def test_smooth_where_vectors_vanish(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        tokens[:, 1, 1:] = 0
        tokens[0, :, 1:] = 0
        tokens.requires_grad_()
        (gradient,) = torch.autograd.grad(mixer(tokens).sum(), tokens)
        assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("reach", [2e-3, 2.0])
    def test_gradient_has_no_jumps(self, mixer: Any, reach: float) -> None:
        """Ten times finer steps give ten times smaller changes.

        The lines lead through zero vectors, and far enough to choose other tokens if any were chosen.
        """
        weights, middle = randn(mixer.out_features, seed=0), self.raw_tokens(1)
        direction = self.raw_tokens(1, seed=3) - middle
        if reach < 1:
            middle[:, 0, 1:] = 0

        def largest_change(points: int) -> Tensor:
            t = torch.linspace(-reach, reach, points, dtype=torch.float64, requires_grad=True)
            chi = mixer(middle + t[:, None, None, None] * direction)
            (slope,) = torch.autograd.grad((chi @ weights).sum(), t)
            return slope.diff().abs().max()

        assert 0 < largest_change(2001) < 0.15 * largest_change(201)

    def test_number_of_tokens_is_fixed_or_free(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        wider = torch.cat([tokens, self.raw_tokens(seed=4)[:, :3]], 1)
        if mixer.n_tokens is not None:
            with pytest.raises(GeomGNNError, match=f"frames, {self.tokens}, 4, {self.channels}"):
                mixer(wider)
            return
        assert mixer(wider).shape == (7, mixer.out_features) and mixer(tokens[:, :1]).isfinite().all()
        mask = torch.arange(self.tokens + 3).expand(7, -1) < self.tokens
        torch.testing.assert_close(mixer(wider, mask), mixer(tokens), atol=1e-11, rtol=1e-11)

    def test_rebuilt_from_settings_and_weights(self, mixer: Any) -> None:
        twin = self.rebuilt(mixer).double()
        twin.load_state_dict(mixer.state_dict())
        assert twin.has_statistics and twin.out_features == mixer.out_features
        torch.testing.assert_close(twin(self.raw_tokens()), mixer(self.raw_tokens()), atol=0, rtol=0)

    def test_deterministic_in_training_and_evaluation(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        chi = mixer.train()(tokens)
        torch.testing.assert_close(mixer.eval()(tokens), chi, atol=0, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(mixer(tokens), chi, atol=0, rtol=0)

    def test_construction_leaves_torchs_generator_alone(self, mixer: Any) -> None:
        state = torch.random.get_rng_state()
        twin = self.rebuilt(mixer)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.manual_seed(1234)
        for a, b in zip(twin.parameters(), self.rebuilt(mixer).parameters(), strict=True):
            assert torch.equal(a, b)

    def test_shapes_that_do_not_fit_are_refused(self, mixer: Any) -> None:
        tokens = self.raw_tokens()
        for bad in (tokens[:, :0], tokens[..., :-1], tokens[:, :, :3], tokens[0]):
            with pytest.raises(GeomGNNError, match=f"frames, {mixer.n_tokens or 'any'}, 4, {self.channels}"):
                mixer(bad)
        with pytest.raises(GeomGNNError, match="mask must be bool"):
            mixer(tokens, torch.ones(tokens.shape[:2]))
        with pytest.raises(GeomGNNError, match="no token at all"):
            mixer(tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool))
