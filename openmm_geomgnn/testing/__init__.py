"""Test suites for encoders, mixers, collective variables and biases, those of other packages included. They need pytest.

A suite is a class of tests: subclass it, under a name that starts with ``Test``, in a file of tests, and define what it asks
for, above all `make`. A test that your class cannot pass by design is switched off by ``test_name = None``.

Examples
--------
A file ``test_my_mixer.py``, run by ``pytest test_my_mixer.py``:

>>> from openmm_geomgnn.cv.mixers import MLPMixer, MLPSettings
>>> from openmm_geomgnn.testing import MixerSuite
>>> class TestMyMixer(MixerSuite):
...     def make(self, n_tokens, hidden_channels, **settings):
...         return MLPMixer(n_tokens, hidden_channels, MLPSettings(width=12, readout=10, **settings))
"""

import pytest

from openmm_geomgnn._lazy import lazy

_SUITES = {"BiasSuite": "biases", "CVSuite": "cvs", "MixerSuite": "mixers", "PhysicsSuite": "encoders"}
_HOMES = {name: f"{__name__}.{module}" for name, module in _SUITES.items()}
# before they are imported: their assertions say what was compared
pytest.register_assert_rewrite(*_HOMES.values())

__getattr__, __dir__, __all__ = lazy(__name__, _HOMES)
