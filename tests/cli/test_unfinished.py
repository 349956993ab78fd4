"""Fits and distillations that are stopped go on from what they had, and end as they would have without a break."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from lobes import lobe, sqrt_data
from molecules import ALA2, ala2, random_cv
from turning_phi import INTERVAL, encoder, trajectory  # noqa: F401

from openmm_geomgnn.cli.fit import run_fit
from openmm_geomgnn.cli.settings.yaml_files import load_fit
from openmm_geomgnn.cv import distillation, fit_data
from openmm_geomgnn.cv.distillation import DistillSettings, distill
from openmm_geomgnn.cv.fit import FitSettings, fit_cv
from openmm_geomgnn.koopman import train_vampnet
from openmm_geomgnn.representation.spec import TokenSpec
from openmm_geomgnn.representation.tokens import Tokenizer
from openmm_geomgnn.unfinished import Unfinished, fingerprint

pytestmark = pytest.mark.slow


class Stopped(KeyboardInterrupt):
    """As by Ctrl-C."""


def stop_at(*where):
    """A progress callable that stops the work at (stage, at least so many done)."""

    def progress(stage, done, total):
        if stage == where[0] and done >= where[1]:
            raise Stopped

    return progress


class TestParts:
    CONTENT = {"epoch": 3, "state": {0: {"step": torch.tensor(4.0)}, 1: [torch.arange(3), None]}, "best": float("-inf")}

    def test_content_comes_back(self, tmp_path):
        Unfinished(tmp_path / "a.cv").save("part", "x", self.CONTENT)
        found = Unfinished(tmp_path / "a.cv").load("part", "x")
        assert found["epoch"] == 3 and found["best"] == float("-inf") and list(found["state"]) == [0, 1]
        assert found["state"][0]["step"].dtype == torch.float32 and found["state"][1][1] is None
        assert torch.equal(found["state"][1][0], torch.arange(3))
        assert [path.name for path in (tmp_path / "a.cv.partial").iterdir()] == ["part.safetensors"]

    def test_what_was_made_from_something_else_or_is_damaged_does_not_count(self, tmp_path):
        unfinished = Unfinished(tmp_path / "a.cv")
        unfinished.save("part", "x", self.CONTENT)
        assert unfinished.load("part", "y") is None and unfinished.load("other", "x") is None
        path = tmp_path / "a.cv.partial/part.safetensors"
        whole = bytearray(path.read_bytes())
        for damaged in (whole[:-5], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], b""):
            path.write_bytes(damaged)
            assert unfinished.load("part", "x") is None
        unfinished.remove()
        unfinished.remove()
        assert not path.parent.exists()

    def test_nothing_is_kept_without_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        nowhere = Unfinished()
        nowhere.save("part", "x", self.CONTENT)
        nowhere.save_now_and_then("part", "x", lambda: pytest.fail("asked for"))
        nowhere.remove()
        assert nowhere.load("part", "x") is None and not list(tmp_path.iterdir())

    def test_now_and_then(self, tmp_path):
        rare, always = Unfinished(tmp_path / "a", seconds=100), Unfinished(tmp_path / "b", seconds=0)
        for number in range(3):
            for unfinished in (rare, always):
                unfinished.save_now_and_then("part", "x", lambda number=number: number)
        assert (rare.load("part", "x"), always.load("part", "x")) == (0, 2)

    def test_fingerprint(self):
        parts = np.arange(4.0), torch.arange(2), {"a": 1, "b": [None]}
        others = (np.arange(4), *parts[1:]), (parts[0].reshape(2, 2), *parts[1:]), (*parts[:2], {"a": 2, "b": [None]})
        assert fingerprint(*parts) == fingerprint(*parts) and fingerprint(*parts) not in {fingerprint(*o) for o in others}


class TestVAMPNet:
    @pytest.mark.parametrize("epoch", [0, 3, -1])
    def test_goes_on_as_if_nothing_had_happened(self, epoch):
        """Optimiser, shuffling, probes, dropout and the best weights; early stopping too."""
        _, tokens = sqrt_data(1000)
        torch.manual_seed(5)
        model = torch.nn.Sequential(lobe(out_features=4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 2))
        model[0].set_statistics([torch.as_tensor(tokens)])
        settings = {"epochs": 12, "batch_size": 200, "lr": 0.1, "patience": 2, "gradient_penalty": 0.01}
        whole = train_vampnet(model, tokens, 1, 1, **settings)
        assert whole.best_epoch < len(whole.history["train"]) - 1
        kept, epoch = [], epoch % len(whole.history["train"])

        def progress(done, *scores):
            if done == epoch:
                raise Stopped

        # as a file holds it
        def keep(state):
            kept.append({name: value.clone() if torch.is_tensor(value) else value for name, value in state().items()})

        with pytest.raises(Stopped):
            train_vampnet(model, tokens, 1, 1, keep=keep, progress=progress, **settings)
        assert len(kept) == epoch + 1
        again = train_vampnet(model, tokens, 1, 1, resume=kept[-1], **settings)
        assert again.history == whole.history and again.best_epoch == whole.best_epoch
        assert (again.test_score, again.test_error) == (whole.test_score, whole.test_error)
        np.testing.assert_array_equal(again.model.projection, whole.model.projection)
        for a, b in zip(again.lobe.state_dict().values(), whole.lobe.state_dict().values(), strict=True):
            assert torch.equal(a, b)


FITS = {
    "linear": {"tokens": TokenSpec(window="sequence")},
    "vampnet": {
        "estimator": "vampnet",
        "mixer": "mlp",
        "mixer_settings": {"width": 16, "readout": 16},
        "training": {"epochs": 6, "batch_size": 100, "gradient_penalty": 0.01},
    },
}


class TestFit:
    @pytest.mark.parametrize(
        ("name", "stage", "done"),
        [("linear", "embed", 150), ("linear", "rates", 1), ("vampnet", "train", 3), ("vampnet", "stiffness", 1)],
    )
    def test_same_bytes(self, name, stage, done, encoder, tmp_path, monkeypatch):  # noqa: F811
        monkeypatch.setattr(fit_data, "PIECE_FRAMES", 50)
        parts = [trajectory(120, seed)[0] for seed in range(2)]
        settings = FitSettings(6.0, INTERVAL, encoder=encoder, **FITS[name])
        fit_cv(parts, ALA2, settings).save(tmp_path / "whole.cv")
        unfinished = Unfinished(tmp_path / "a.cv", seconds=0)
        with pytest.raises(Stopped):
            fit_cv(parts, ALA2, settings, stop_at(stage, done), unfinished)
        names = {path.name for path in unfinished.folder.iterdir()}
        assert "tokens.0.0.safetensors" in names and ("vampnet.safetensors" in names) == (name == "vampnet")
        embedded, embed, calls = [], Tokenizer.embed, []

        def counted(self, pos, *arguments, **options):
            embedded.append(len(pos))
            return embed(self, pos, *arguments, **options)

        monkeypatch.setattr(Tokenizer, "embed", counted)
        fit_cv(parts, ALA2, settings, lambda *call: calls.append(call), unfinished).save(tmp_path / "a.cv")
        assert (tmp_path / "a.cv").read_bytes() == (tmp_path / "whole.cv").read_bytes()
        assert ("embed", 240, 240) in calls
        if stage == "embed":
            assert 0 < sum(embedded) - 2 * 240 <= 150  # the rates take frames twice
        if name == "vampnet":
            assert not embedded
            assert [call for call in calls if call[0] == "train"][:1] == [("train", 4, 6)] * (stage == "train")

    def test_other_data_or_settings_do_not_use_it(self, encoder, tmp_path):  # noqa: F811
        parts = [trajectory(100, seed)[0] for seed in range(2)]
        settings = FitSettings(4.0, INTERVAL, encoder=encoder, softening=0.0)
        unfinished = Unfinished(tmp_path / "a.cv")
        fit_cv(parts, ALA2, settings, None, unfinished)
        other = parts[1][:]
        other.xyz[40, 8] += 0.01
        for data, changes in (([parts[0], other], {}), (parts, {"tokens": TokenSpec(pooling="mean")})):
            changed = FitSettings(4.0, INTERVAL, encoder=encoder, softening=0.0, **changes)
            fit_cv(data, ALA2, changed, None, unfinished).save(tmp_path / "found.cv")
            fit_cv(data, ALA2, changed).save(tmp_path / "expected.cv")
            assert (tmp_path / "found.cv").read_bytes() == (tmp_path / "expected.cv").read_bytes()

    def test_killed(self, encoder, tmp_path, monkeypatch):  # noqa: F811
        """`geomgnn fit`, kill -9 between two epochs, and again."""
        for seed in range(2):
            trajectory(200, seed)[0].save_dcd(str(tmp_path / f"{seed}.dcd"))
        text = (
            f"topology: {ALA2}\ntrajectories: ['{tmp_path}/*.dcd']\nframe_interval: {INTERVAL} ps\ncv:\n  lag: 10 ps\n"
            f"  encoder: {encoder}\n  estimator: vampnet\n  mixer: mlp\n  mixer_settings: {{width: 16, readout: 16}}\n"
            "  training: {epochs: 60, batch_size: 20, patience: 60}\n"
        )
        (tmp_path / "fit.yaml").write_text(text)
        monkeypatch.chdir(tmp_path)
        code = "from openmm_geomgnn.cli.main import main; main()"
        command = [sys.executable, "-c", code, "fit", "fit.yaml", "--set", "output=a.safetensors"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state, deadline = tmp_path / "a.safetensors.partial/vampnet.safetensors", time.monotonic() + 100
        while not state.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and state.exists() and not (tmp_path / "a.safetensors").exists()
        run_fit(load_fit(tmp_path / "fit.yaml", {"output": "a.safetensors"}))
        run_fit(load_fit(tmp_path / "fit.yaml", {"output": "whole.safetensors"}))
        assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
        assert not list(tmp_path.glob("*.partial"))


class TestDistillation:
    @pytest.mark.parametrize(("stage", "done"), [("labels", 150), ("train", 2), ("stiffness", 1)])
    def test_same_bytes(self, stage, done, tmp_path, monkeypatch):
        monkeypatch.setattr(distillation, "PIECE", 40)
        cv = random_cv(ala2().topology, dimension=1)
        parts = [trajectory(60, seed)[0] for seed in range(2)]
        settings = DistillSettings(hidden=8, labels=120, epochs=4)
        distill(cv, ALA2, parts, settings).save(tmp_path / "whole.cv")
        unfinished = Unfinished(tmp_path / "a.cv", seconds=0)
        with pytest.raises(Stopped):
            distill(cv, ALA2, parts, settings, stop_at(stage, done), unfinished)
        asked, label_frames = [], distillation.label_frames

        def counted(teacher, pos, *rest):
            asked.append(len(pos))
            return label_frames(teacher, pos, *rest)

        monkeypatch.setattr(distillation, "label_frames", counted)
        distill(cv, ALA2, parts, settings, None, unfinished).save(tmp_path / "a.cv")
        assert (tmp_path / "a.cv").read_bytes() == (tmp_path / "whole.cv").read_bytes()
        assert (stage == "labels") == bool(asked) and sum(asked) <= 60
