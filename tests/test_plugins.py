"""Mixers, encoders and biases of other packages: found by name, in YAML files and CV files, and refused with reasons."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
import toy_mixer
from distributions import install
from molecules import ALA2, random_encoder
from protocol_texts import changed, line_of
from turning_phi import INTERVAL, trajectory

from openmm_geomgnn import Encoder
from openmm_geomgnn.cli.settings.yaml_files import dump
from openmm_geomgnn.cv.mixers import MIXERS, get_mixer, make_mixer, mixer_names, mixer_settings
from openmm_geomgnn.cv.network import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.plugins import GROUPS, PluginError, plugin_names
from torchmdnet_ext.checkpoints import write_encoder

TOY = inspect.getsource(toy_mixer)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution for the time of a test: its name, its entry points of one kind, its modules."""

    def installed(name, kind, entries, modules=()):
        folder = tmp_path / f"site-{name}"
        install(folder, name, {GROUPS[kind]: entries}, modules)
        monkeypatch.syspath_prepend(folder)
        for module in dict(modules):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return folder

    return installed


@pytest.fixture
def toy(installed):
    """A package with the mixer `toy`; returns the folder that it is in."""
    return installed("toy-mixers", "mixer", {"toy": "their_mixer:ToyMixer"}, {"their_mixer": TOY})


class TestMixers:
    def test_is_known_by_name(self, toy):
        assert get_mixer("toy").__module__ == "their_mixer" and mixer_names() == [*MIXERS, "toy"]
        assert mixer_settings("toy") == {"width", "pool", "readout", "out_features", "chirality", "seed"}
        mixer = make_mixer("toy", 3, 8, width=4)
        assert make_mixer(**mixer.settings).settings == mixer.settings
        with pytest.raises(GeomGNNError, match="Did you mean 'toy'.* Known: attention, .*token-merging, toy"):
            make_mixer("toi", 3, 8)
        with pytest.raises(GeomGNNError, match="widht is no setting of mixer 'toy'. Did you mean 'width'"):
            make_mixer("toy", 3, 8, widht=4)

    def test_nothing_is_imported_to_list_names(self, toy):
        assert plugin_names("mixer") == ["toy"] and "their_mixer" not in sys.modules
        make_mixer("mlp", 3, 8)
        assert "their_mixer" not in sys.modules

    def test_names_of_ours_come_first(self, installed):
        installed("greedy", "mixer", {"mlp": "greedy_mixer:Nothing", "toy": "their_mixer:ToyMixer"}, {"their_mixer": TOY})
        assert get_mixer("mlp") is MIXERS["mlp"] and mixer_names() == [*MIXERS, "toy"]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("import jaxx", "cannot be imported .ModuleNotFoundError: No module named 'jaxx'.*Mend"),
            ("raise RuntimeError('too old')", "cannot be imported .RuntimeError: too old.*Mend"),
            ("x = 1", "cannot be imported .AttributeError: .*ToyMixer"),
            ("ToyMixer = 3", "cannot be used: it is not a subclass of openmm_geomgnn.cv.mixers.Mixer"),
            (TOY.replace('name = "toy"', 'name = "other"'), "its class has the name 'other'"),
            (TOY.replace("settings_class = ToySettings", "settings_class = dict"), "its settings_class is not"),
        ],
    )
    def test_a_broken_package_is_named_and_breaks_nothing_else(self, installed, source, message):
        installed("toy-mixers", "mixer", {"toy": "their_mixer:ToyMixer"}, {"their_mixer": source})
        with pytest.raises(PluginError, match=f"mixer 'toy' .*of the package toy-mixers 1.0.*{message}"):
            make_mixer("toy", 3, 8)
        assert make_mixer("mlp", 3, 8).name == "mlp" and "toy" in mixer_names()

    def test_two_packages_with_one_name(self, toy, installed):
        installed("other-toys", "mixer", {"toy": "their_mixer:ToyMixer"})
        with pytest.raises(PluginError, match="packages other-toys 1.0 and toy-mixers 1.0 both have a mixer 'toy'"):
            get_mixer("toy")


class TestSettingsFiles:
    @staticmethod
    def with_mixer(name, more=""):
        return changed(("mixer: none", f"mixer: {name}{more}"), ("estimator: linear", "estimator: vampnet"))

    def test_a_mixer_by_name(self, toy, shipped_files, load_text):
        protocol = load_text(self.with_mixer("toy", "\n  mixer_settings: {width: 8}"))
        assert (protocol.cv.mixer, protocol.cv.mixer_settings) == ("toy", {"width": 8})
        assert "  mixer: toy\n" in dump(protocol)

    def test_errors(self, toy, shipped_files, refusal):
        message = refusal(self.with_mixer("toi"))
        assert "'token-merging' or 'toy'" in message and "Did you mean 'toy'" in message
        message = refusal(self.with_mixer("toy", "\n  mixer_settings: {widht: 8}"))
        assert "widht is no setting of mixer 'toy'. Did you mean 'width'" in message

    def test_a_broken_package(self, installed, shipped_files, refusal):
        installed("toy-mixers", "mixer", {"toy": "their_mixer:ToyMixer"}, {"their_mixer": "import jaxx"})
        text = self.with_mixer("toy")
        message = refusal(text)
        assert f"section cv of x.yaml (line {line_of(text, 'mixer: toy')})" in message
        assert "toy-mixers 1.0" in message and "jaxx" in message
        assert "must be 'none'" in refusal(self.with_mixer("3"))


@pytest.mark.slow
def test_fit_by_the_command_and_a_file_without_its_package(toy, geomgnn, tmp_path, monkeypatch):
    """`geomgnn fit` with a mixer of another package; the file is read again, in another process as well."""
    random = random_encoder()
    write_encoder(tmp_path / "random.safetensors", random.settings, random.network)
    for seed in range(2):
        trajectory(120, seed)[0].save_dcd(str(tmp_path / f"{seed}.dcd"))
    (tmp_path / "fit.yaml").write_text(
        f"topology: {ALA2}\ntrajectories: ['*.dcd']\nframe_interval: {INTERVAL} ps\noutput: toy.cv.safetensors\ncv:\n"
        "  lag: 10 ps\n  encoder: random.safetensors\n  estimator: vampnet\n  mixer: toy\n"
        "  mixer_settings: {width: 8, readout: 8}\n  training: {epochs: 2, batch_size: 50}\n"
    )
    code, _, error = geomgnn("fit", "fit.yaml")
    assert code == 0, error
    cv = CollectiveVariable.load(tmp_path / "toy.cv.safetensors")
    assert type(cv.mixer).__module__ == "their_mixer" and cv.mixer.settings["width"] == 8
    part, _ = trajectory(20, 5)
    expected = cv.bind(ALA2).compute(part)
    assert np.ptp(expected) > 0
    code, shown, _ = geomgnn("info", "toy.cv.safetensors")
    assert code == 0 and "toy" in shown

    part.save_dcd(str(tmp_path / "new.dcd"))
    program = (
        "import sys, mdtraj, numpy; from openmm_geomgnn import GeomGNNCV\n"
        f"cv = GeomGNNCV('toy.cv.safetensors', {str(ALA2)!r})\n"
        f"numpy.save('new.npy', cv.compute(mdtraj.load('new.dcd', top={str(ALA2)!r})))\n"
    )
    path = {"PYTHONPATH": ":".join(map(str, [toy, *filter(None, sys.path)]))}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "new.npy"), expected, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(toy)])
    code, _, error = geomgnn("info", "toy.cv.safetensors")
    text = " ".join(error.split())
    assert code == 1 and "mixer 'toy' is unknown" in text and "comes from another package" in text and "install" in text


class TestEncoders:
    @pytest.fixture
    def weights(self, tmp_path):
        random = random_encoder()
        write_encoder(tmp_path / "weights.safetensors", random.settings, random.network)
        return tmp_path / "weights.safetensors"

    @pytest.mark.parametrize(
        "source",
        [
            "theirs = {path!r}",
            "from pathlib import Path\ntheirs = Path({path!r})",
            "def theirs():\n    return {path!r}",
            "from openmm_geomgnn import Encoder\ndef theirs():\n    return Encoder.load({path!r})",
        ],
        ids=["text", "path", "function of a path", "function of an Encoder"],
    )
    def test_by_name(self, installed, weights, source):
        modules = {"toy_weights": source.format(path=str(weights))}
        installed("toy-weights", "encoder", {"toy-16": "toy_weights:theirs"}, modules)
        expected = Encoder.load(weights)
        found = Encoder.load("toy-16", torch.float64)
        assert found.dtype == torch.float64 and found.content_hash() == expected.content_hash()
        assert found.settings == expected.settings
        blunt, expected = (Encoder.load(source, smooth_cutoff=False) for source in ("toy-16", weights))
        assert not blunt.network.smooth_cutoff and blunt.content_hash() == expected.content_hash()

    def test_in_a_file_of_settings(self, installed, weights, shipped_files, load_text, refusal):
        installed("toy-weights", "encoder", {"toy-16": "toy_weights:theirs"}, {"toy_weights": f"theirs = {str(weights)!r}"})
        assert load_text(changed(("encoder: et-64", "encoder: toy-16"))).cv.encoder == "toy-16"
        message = refusal(changed(("encoder: et-64", "encoder: toy-61")))
        assert "Did you mean 'toy-16'" in message and "other packages have toy-16" in message

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("theirs = 3", "toy-weights 1.0 cannot be used: it is 3, neither a path nor a function"),
            ("import jaxx", "toy-weights 1.0, which cannot be imported"),
            ("def theirs():\n    return 3", "'toy-16' of another package is 3, neither an Encoder nor a path"),
            ("def theirs():\n    raise OSError('no disk')", "'toy-16' of another package cannot be made: no disk"),
            ("theirs = '/nowhere/a.safetensors'", "no encoder file /nowhere/a.safetensors"),
        ],
    )
    def test_what_cannot_be_used(self, installed, source, message):
        installed("toy-weights", "encoder", {"toy-16": "toy_weights:theirs"}, {"toy_weights": source})
        with pytest.raises(GeomGNNError, match=message):
            Encoder.load("toy-16")
        assert Encoder.load("et-64").name == "et-64"
