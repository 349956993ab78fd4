"""Mixers for tests: every one that is registered, small, in all the ways that any of them can be set up."""

import torch

from openmm_geomgnn.cv.mixers import MIXERS, make_mixer, mixer_settings

R, H, F = 5, 6, 7
SMALL = {
    "width": 12,
    "vector_channels": 6,
    "heads": 3,
    "feedforward": 16,
    "readout": 10,
    "out_features": 4,
    "layers": 2,
    "merged": 3,
    "neighbours": 1,
}
EXTRA = {
    "mlp, one layer": ("mlp", R, {"layers": 1, "seed": 3}),
    "attention, pooled by attention": ("attention", None, {"pool": "attention", "layers": 1}),
    "message-passing, all": ("message-passing", R, {"neighbours": "all", "pool": "sum"}),
    "token-merging, blocks": ("token-merging", R, {"assignment": "blocks", "chirality": True}),
    "token-merging, more than there are": ("token-merging", R, {"merged": 7, "pool": "mean"}),
    "none, sum": ("none", None, {"pool": "sum"}),
}


def small(name, **settings):
    """Settings of the mixer called `name`: those of SMALL that it has, and `settings`."""
    return {**{key: value for key, value in SMALL.items() if key in mixer_settings(name)}, **settings}


# case -> name, n_tokens, settings; a mixer that is registered has its cases
CASES = {
    **{name: (name, R, small(name)) for name in MIXERS},
    **{f"{name}, chirality": (name, R, small(name, chirality=True)) for name in MIXERS},
    **{f"{name}, any number": (name, None, small(name, pool="mean")) for name in MIXERS},
    **{case: (name, tokens, small(name, **settings)) for case, (name, tokens, settings) in EXTRA.items()},
}
LEARNED = [name for name in MIXERS if name != "none"]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def raw_tokens(frames=F, seed=0, dtype=torch.float64):
    """Tokens like a network's: sizes differ by channel and residue, fluctuations are small beside them."""
    size = torch.logspace(-2, 1, H, dtype=torch.float64)
    offset = 5 * random(R, 4, H, seed=99) * size
    return (offset + random(frames, R, 4, H, seed=seed) * size).to(dtype)


def ready(case):
    """The mixer of a case, in double precision and with statistics."""
    name, tokens, settings = CASES[case]
    mixer = make_mixer(name, tokens, H, **settings).double()
    mixer.set_statistics(raw_tokens(200, seed=5))
    return mixer
