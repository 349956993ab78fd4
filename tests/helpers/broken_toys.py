"""Classes with one mistake each, and the suites that they must fail; `tests/test_testing.py` runs this file."""

from dataclasses import dataclass

import numpy as np
import torch
from molecules import ala2, random_cv, random_encoder
from toy_bias import ToyBias
from toy_mixer import ToyMixer, ToySettings

from openmm_geomgnn.cv.network import BoundCV, CollectiveVariable
from openmm_geomgnn.testing import BiasSuite, CVSuite, MixerSuite, PhysicsSuite
from torchmdnet_ext.models.visnet import ViSNet

# ------------------------------------------------------------------------------------------------------------ encoders


class Network(PhysicsSuite):
    channels = 8

    def make(self, **settings):
        sizes = {"hidden_channels": 8, "num_layers": 1, "num_rbf": 6, "num_heads": 2}
        return ViSNet(**sizes, cutoff_upper=self.cutoff, max_z=40, **settings)


class TestSoundNetwork(Network):
    pass


class TestNetworkWithoutEnvelope(Network):
    def make(self):
        return super().make(smooth_cutoff=False)


class TestNetworkInAFixedFrame(Network):
    """Its scalars know where the origin is, and which way x points."""

    def evaluate(self, network, z, pos, batch=None, **options):
        x, v = super().evaluate(network, z, pos, batch, **options)
        return x + 0.1 * torch.tanh(pos[:, :1]), v


# -------------------------------------------------------------------------------------------------------------- mixers


class Mixer(MixerSuite):
    kind = ToyMixer

    def make(self, n_tokens, hidden_channels, **settings):
        return self.kind(n_tokens, hidden_channels, ToySettings(width=12, readout=10, **settings))


class TestSoundMixer(Mixer):
    pass


class NotInvariant(ToyMixer):
    """It takes a component of each vector for an invariant."""

    def mix(self, features, vectors, mask):
        return super().mix(
            features + 0.1 * torch.cat([features[..., vectors.shape[-1] :], vectors[:, :, 0]], -1), None, mask
        )


class TestMixerThatIsNotInvariant(Mixer):
    def make(self, n_tokens, hidden_channels, **settings):
        settings.pop("chirality", None)
        return NotInvariant(n_tokens, hidden_channels, ToySettings(width=12, readout=10, **settings))


class Kinked(ToyMixer):
    def mix(self, features, vectors, mask):
        return super().mix(torch.relu(features), vectors, mask)


class TestMixerWithAKink(Mixer):
    kind = Kinked


class BlindToMasks(ToyMixer):
    def forward(self, tokens, mask=None):
        return super().forward(tokens)


class TestMixerThatIgnoresMasks(Mixer):
    kind = BlindToMasks


# -------------------------------------------------------------------------------------------------------------- biases


class TestSoundBias(BiasSuite):
    def make(self):
        return ToyBias()


class WrongSlope(ToyBias):
    """A width is missing in the derivative."""

    def bias(self, state, s):
        energy, slope = super().bias(state, s)
        return energy, slope * self.width


class TestBiasWithAWrongDerivative(BiasSuite):
    def make(self):
        return WrongSlope()


@dataclass(frozen=True)
class Forgetful(ToyBias):
    """Its checkpoint is in single precision."""

    def to_arrays(self, state):
        return {"centres": state.astype(np.float32)}

    def from_arrays(self, arrays):
        return arrays["centres"].astype(np.float64)


class TestBiasThatForgets(BiasSuite):
    def make(self):
        return Forgetful()


class Impure(ToyBias):
    """An evaluation moves the state, which the engine may do as often as it likes."""

    def bias(self, state, s):
        state += 1e-3
        return super().bias(state, s)


class TestBiasThatIsNotPure(BiasSuite):
    def make(self):
        return Impure()


# ----------------------------------------------------------------------------------------------------------------- CVs


class CV(CVSuite):
    mirror_images, cutoff = "alike", 5.0

    def make(self):
        return random_cv(ala2().topology)

    def structure(self):
        return ala2()


class TestSoundCV(CV):
    pass


class HalfTheGradient(BoundCV):
    def value_and_vjp(self, pos):
        psi, vjp = super().value_and_vjp(pos)
        return psi, lambda weights: 0.5 * vjp(weights)


class OfOneHalf(CollectiveVariable):
    def bind(self, topology, precision="single", engine="auto", device=None):
        return HalfTheGradient(self, topology, precision, engine, device)


class TestCVWithAWrongGradient(CV):
    def make(self):
        cv = super().make()
        cv.__class__ = OfOneHalf
        return cv


class TestCVOfAnEncoderWithoutEnvelope(CV):
    def make(self):
        return random_cv(ala2().topology, random_encoder(smooth_cutoff=False))
