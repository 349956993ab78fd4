"""Encoders, settings and a trajectory for what is embedded."""

import pytest


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Files of two random encoders."""
    from molecules import random_encoder

    from torchmdnet_ext.checkpoints import write_encoder

    folder = tmp_path_factory.mktemp("encoders")
    for seed, name in ((8, "one"), (9, "two")):
        random = random_encoder(seed=seed)
        write_encoder(folder / f"{name}.safetensors", random.settings, random.network)
    return {name: str(folder / f"{name}.safetensors") for name in ("one", "two")}


@pytest.fixture
def settings(encoders):
    from openmm_geomgnn.representation.embed_trajectories import EmbedSettings
    from openmm_geomgnn.representation.spec import TokenSpec

    return EmbedSettings(encoder=encoders["one"], chunk=6, tokens=TokenSpec(window="sequence", context=0))


@pytest.fixture
def xtc(tmp_path):
    from embedded import frames

    path = tmp_path / "a.xtc"
    frames().save(str(path))
    return path
