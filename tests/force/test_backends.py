"""Which backends can be used, said before anything that would crash is imported; the CV as TorchScript; `geomgnn doctor`."""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import openmm
import pytest
import torch
from force_systems import BIAS, PDB, POSITIONS
from molecules import BOXES, TRANSFORMER, ala2, peptide, random_cv, random_encoder, wrapped

from openmm_geomgnn import GeomGNNCV
from openmm_geomgnn.cli import doctor
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.force import backends
from openmm_geomgnn.force.backends import torch_force
from openmm_geomgnn.force.backends.versions import PACKAGES, RULES, UNRELEASED, installed_versions, refusal
from openmm_geomgnn.force.evaluation import Evaluation

pytestmark = pytest.mark.slow

WHEELS = {"torch": "2.9.1+cu128", "openmm": "8.4.0", "openmmtorch": "1.5"}
NEWEST = {"torch": "2.13.0+cpu", "openmm": "8.6.1"}
COMMAND = "from openmm_geomgnn.cli.main import main; main()"
MAIN = {**NEWEST, "openmmtorch": UNRELEASED}


class TestVersions:
    @pytest.mark.parametrize(
        ("versions", "usable"),
        [
            (NEWEST, {"PythonForce"}),
            (WHEELS, {"TorchForce"}),
            ({**WHEELS, "torch": "2.9.0"}, {"TorchForce"}),
            (MAIN, {"PythonForce", "PythonTorchForce", "TorchForce"}),
            ({**NEWEST, "openmmtorch": "1.5"}, {"PythonForce"}),
            ({**WHEELS, "openmm": "8.6.1"}, {"PythonForce"}),
            ({"torch": "2.13.0", "openmm": "8.4.0"}, set()),
            ({"torch": "2.13.0", "openmm": "8.5.2"}, set()),
            ({**MAIN, "openmm": "8.4.0"}, set()),
            ({**NEWEST, "openmmtorch": "1.6"}, {"PythonForce", "PythonTorchForce", "TorchForce"}),
            ({**NEWEST, "openmmtorch": "unknown"}, {"PythonForce", "PythonTorchForce", "TorchForce"}),
            ({"torch": "2.13.0"}, set()),
        ],
    )
    def test_what_can_be_used(self, versions, usable):
        assert {name for name in RULES if refusal(name, versions) is None} == usable
        assert set(RULES) == set(backends.BACKENDS)

    @pytest.mark.parametrize(
        ("backend", "versions", "reason"),
        [
            ("TorchForce", {**WHEELS, "openmm": "8.6.1"}, "with 8.6.1 it crashes in CustomCVForce and XML"),
            ("TorchForce", {**WHEELS, "torch": "2.13.0+cpu"}, "cannot be loaded with 2.13.0+cpu"),
            ("TorchForce", {**WHEELS, "torch": "2.9.1+cpu"}, "needs the CUDA 12 build of PyTorch"),
            ("TorchForce", {**WHEELS, "torch": "2.9.1+cu130"}, "needs the CUDA 12 build of PyTorch"),
            ("TorchForce", {**WHEELS, "openmmtorch": "1.4"}, "openmm-torch 1.4 is older than 1.5"),
            ("TorchForce", NEWEST, "openmm-torch is not installed"),
            ("PythonForce", WHEELS, "OpenMM 8.4.0 has no openmm.PythonForce"),
            ("PythonForce", {**NEWEST, "openmm": "8.5.2"}, "OpenMM 8.5.2 has no openmm.PythonForce"),
            ("PythonForce", {"torch": "2.13.0"}, "OpenMM is not installed"),
            ("PythonTorchForce", WHEELS, "openmm-torch 1.5 has no PythonTorchForce; no release has it yet"),
            ("PythonTorchForce", {**MAIN, "openmm": "8.4.0"}, "tried with OpenMM 8.6, not with 8.4.0"),
        ],
    )
    def test_a_refusal_says_why_and_what_to_do(self, backend, versions, reason):
        message = refusal(backend, versions)
        assert reason in message and "pip install" in message and "\n" not in message

    def test_the_versions_advised_are_those_tested(self, repository):
        pins = (repository / "constraints-openmm-torch.txt").read_text(encoding="utf-8").splitlines()
        pins = [pin for pin in pins if pin.split("==")[0] in (*PACKAGES, "openmm-cuda-12")]
        assert len(pins) == 4
        advice = refusal("TorchForce", NEWEST)
        assert all(f'"{pin}"' in advice for pin in pins)

    @pytest.mark.parametrize("unreleased", [False, True])
    def test_an_unreleased_openmm_torch_is_told_by_its_text(self, tmp_path, monkeypatch, unreleased):
        """Its version is that of the release; importing it would stop this test."""
        text = "raise SystemExit('imported')\nclass TorchForce:\n    pass\n"
        (tmp_path / "openmmtorch.py").write_text(text + "class PythonTorchForce:\n    pass\n" * unreleased)
        (tmp_path / "openmmtorch-1.5.dist-info").mkdir()
        (tmp_path / "openmmtorch-1.5.dist-info" / "METADATA").write_text("Name: openmmtorch\nVersion: 1.5\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "openmmtorch", raising=False)
        found = installed_versions()
        assert found["openmmtorch"] == (UNRELEASED if unreleased else "1.5")
        assert found["torch"].split("+")[0] == torch.__version__.split("+")[0] and "openmmtorch" not in sys.modules


class TestChoice:
    @pytest.mark.parametrize(
        ("usable", "chosen"),
        [
            ({"PythonForce", "TorchForce", "PythonTorchForce"}, "PythonForce"),
            ({"TorchForce", "PythonTorchForce"}, "TorchForce"),
            ({"PythonTorchForce"}, "PythonTorchForce"),
        ],
    )
    def test_of_auto(self, monkeypatch, usable, chosen):
        monkeypatch.setattr(backends, "why_not", lambda name: None if name in usable else "a reason")
        assert backends.choose("auto") == chosen

    def test_of_nothing(self, monkeypatch):
        monkeypatch.setattr(backends, "why_not", lambda name: f"no {name} here.")
        with pytest.raises(GeomGNNError, match="No backend can be used here. PythonForce: no PythonForce here. Torch"):
            backends.choose()
        with pytest.raises(GeomGNNError, match="The backend TorchForce cannot be used: no TorchForce here"):
            backends.choose("TorchForce")

    def test_of_a_name_that_is_none(self, cv_file):
        with pytest.raises(GeomGNNError, match="Unknown backend 'pythonforce'; .*Did you mean 'PythonForce'?"):
            GeomGNNCV(cv_file, PDB.topology, backend="pythonforce")

    @pytest.mark.skipif(backends.why_not("PythonForce") is not None, reason="OpenMM has no PythonForce")
    def test_by_a_force(self, cv_file):
        force = GeomGNNCV(cv_file, PDB.topology)
        assert force.backend == "PythonForce" and type(force).__name__ == "GeomGNNCV"
        assert isinstance(force, GeomGNNCV) and isinstance(force, openmm.PythonForce)
        assert type(force) is type(GeomGNNCV(cv_file, PDB.topology, backend="PythonForce"))
        assert "backend" in inspect.signature(GeomGNNCV).parameters and force.getName() == "GeomGNNCV"

    @pytest.mark.parametrize("name", ["TorchForce", "PythonTorchForce"])
    def test_of_what_cannot_be_used(self, cv_file, name):
        reason = backends.why_not(name)
        if reason is None:
            pytest.skip(f"{name} can be used here")
        with pytest.raises(GeomGNNError) as error:
            GeomGNNCV(cv_file, PDB.topology, backend=name)
        assert reason in str(error.value)

    def test_without_a_python_force_openmm_can_be_used(self):
        """OpenMM 8.4 has none."""
        code = (
            "import openmm\n"
            "for module in (openmm, openmm.openmm): vars(module).pop('PythonForce', None)\n"
            "from openmm_geomgnn import GeomGNNCV\n"
            "from openmm_geomgnn.force.backends import python_force\n"
            "print(python_force.why_not())\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "has no PythonForce" in done.stdout, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a CUDA device: else the script runs there")
class TestScript:
    """The TorchScript module that TorchForce is given, evaluated without it."""

    def script(self, cv, topology=PDB.topology, precision="double", **settings):
        bound = cv.bind(topology, precision, "eager")
        return bound, torch_force.script(Evaluation(None, bound=bound, failures=None, **settings))

    @pytest.mark.parametrize("model", [TRANSFORMER, "visnet", "smooth-tensornet"])
    def test_of_a_component(self, model):
        bound, script = self.script(random_cv(ala2().topology, random_encoder(model), window="sequence"), component=1)
        assert "openmm_geomgnn::bias" not in str(script.inlined_graph)
        for stretch in (0.7, 1.0, 2.5):  # all pairs within the cutoff, most of them, few of them
            positions = torch.tensor(stretch * POSITIONS, requires_grad=True)
            energy = script(positions)
            expected = bound(10 * positions[bound.atoms][None])[0, 1]
            assert energy.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
            found, exact = (torch.autograd.grad(value, positions)[0] for value in (energy, expected))
            torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))

    def test_of_a_bias(self, cv_file):
        from openmm_geomgnn.cv.network import CollectiveVariable

        bound = CollectiveVariable.load(cv_file).bind(PDB.topology, "double", "eager")
        evaluation = Evaluation(None, bias=BIAS, bound=bound, failures=None)
        script = torch_force.script(evaluation)
        for k in range(3):
            s = bound.compute(POSITIONS + 0.002 * np.random.default_rng(k).normal(size=POSITIONS.shape))[0]
            evaluation.state = BIAS.update(evaluation.state, s)
            positions = torch.tensor(POSITIONS, requires_grad=True)
            energy = script(positions)
            energy.backward()
            psi, vjp = bound.value_and_vjp(10 * POSITIONS[bound.atoms])
            expected, slope = BIAS.bias(evaluation.state, psi)
            assert energy.item() == pytest.approx(expected, rel=1e-10)
            assert evaluation.last[1] == pytest.approx(expected, rel=1e-12)
            np.testing.assert_allclose(positions.grad[bound.atoms], 10 * vjp(slope), rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("box", BOXES)
    def test_makes_molecules_whole(self, box):
        topology = peptide([1, 2, 3, 4, 5], [6, 7, 8])
        cv = random_cv(topology)
        bound, script = self.script(cv, topology, component=0, periodic=True)
        rng = np.random.default_rng(4)
        positions = np.cumsum(0.07 * rng.normal(size=(topology.n_atoms, 3)), axis=0)
        for _ in range(5):
            cut = wrapped(positions + rng.uniform(-1, 1, 3) @ BOXES[box], BOXES[box])
            whole = bound.molecule.make_whole(cut[bound.atoms], BOXES[box])
            expected = float(bound(10 * torch.tensor(whole)[None])[0, 0])
            assert float(script(torch.tensor(cut), torch.tensor(BOXES[box]))) == pytest.approx(expected, rel=1e-9)

    def test_what_is_not_finite_is_an_error(self, cv_file):
        _, script = self.script(random_cv(ala2().topology), component=0)
        positions = torch.tensor(POSITIONS)
        positions[4, 1] = torch.nan
        with pytest.raises(Exception, match="not finite: the simulation blew up"):
            script(positions)


def findings(**changes):
    """What `doctor.examine` finds where all is well."""
    found = {
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numba": ""},
        "required": {"torch": None},
        "extras": {"fast": {"packages": {"numba": "not installed (pip)"}, "install": 'pip install "openmm-geomgnn[fast]"'}},
        "platforms": {
            "found": {"Reference": {"speed": 1.0}, "CPU": {"speed": 10.0}},
            "names": ["Reference", "CPU"],
            "auto": {"small": "Reference", "large": "CPU"},
            "failures": ["Error loading library /x/libOpenMMOpenCL.so: libOpenCL.so.1: cannot open shared object file"],
        },
        "engines": {"encoders": {"et-64": None}, "networks": ["ViSNet"], "folder": "/kernels", "warm": [], "gpu": None},
        "backends": {
            "PythonForce": {"reason": None, "milliseconds": 12.0, "engine": "numba"},
            "PythonTorchForce": {"reason": "no openmm-torch here"},
            "TorchForce": {"reason": "no openmm-torch here"},
        },
        "auto": {"backend": "PythonForce", "engine": "numba", "platform": {"small": "Reference", "large": "CPU"}},
    }
    return {**found, **changes}


SMALL = ("Reference", "CUDA", "HIP")  # platforms for a small system: a GPU's where there is one


class TestDoctor:
    def test_where_all_is_well(self, monkeypatch, capsys):
        found = findings()
        found["problems"] = doctor.problems(found)
        monkeypatch.setattr(doctor, "examine", lambda *announce: found)
        assert doctor.run_doctor() == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "auto takes the backend PythonForce, the engine numba for et-64, and the platform CPU" in text
        assert 'pip install "openmm-geomgnn[fast]"' in text and "no openmm-torch here" in text
        assert "OpenMMOpenCL: libOpenCL.so.1" in text and "compiles for 30 s" in text and "can be biased here" in text
        assert doctor.run_doctor(as_json=True) == 0
        assert json.loads(capsys.readouterr().out) == found

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"required": {"mdtraj": "not installed"}}, "mdtraj: not installed"),
            ({"platforms": {"error": "it crashed (signal 11)", "found": {}}}, "platforms cannot be listed: it crashed"),
            ({"auto": {"backend": None, "engine": None, "platform": None}}, "No backend can be used"),
            (
                {"backends": {name: {"error": "it crashed (signal 11)"} for name in backends.BACKENDS}},
                "The backend PythonForce, which auto takes, does not work: it crashed (signal 11)",
            ),
            ({"engines": {"error": "it took more than 180 s"}}, None),
        ],
    )
    def test_what_is_broken(self, monkeypatch, capsys, changes, problem):
        found = findings(**changes)
        found["problems"] = doctor.problems(found)
        monkeypatch.setattr(doctor, "examine", lambda *announce: found)
        assert doctor.run_doctor() == (problem is not None)
        assert problem is None or any(problem in told for told in found["problems"])
        assert problem is None or "Problem" in capsys.readouterr().out

    def test_a_probe_that_crashes_hangs_or_fails_is_reported(self, monkeypatch, tmp_path):
        def answer(script, **options):
            program = tmp_path / "python"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            monkeypatch.setattr(doctor.sys, "executable", str(program))
            return doctor.probe("platforms", **options)

        assert answer("kill -SEGV $$") == {"error": "it crashed (signal 11)"}
        assert answer("exec sleep 30", limit=0.2) == {"error": "it took more than 0.2 s"}
        assert answer("echo trace >&2; echo ImportError: no >&2; exit 1") == {"error": "ImportError: no"}
        assert answer("echo hello") == {"error": "it printed nothing that can be read"}
        assert answer("echo hello; echo '{\"a\": 1}'") == {"a": 1}

    @pytest.mark.parametrize(
        ("version", "bounds", "fits"),
        [
            ("3.1.0", ">=3.1,<3.2", True),
            ("3.2.0", ">=3.1,<3.2", False),
            ("2.13.0+cpu", ">=2.5", True),
            ("8.4", ">=8.4.0", True),
            ("1.11.1.post2", ">=1.10", True),
            ("0.59.1", ">=0.60", False),
            ("1.0", "", True),
        ],
    )
    def test_bounds(self, version, bounds, fits):
        assert (doctor.trouble("numba", bounds, version) is None) == fits

    def test_for_real(self):
        """The command itself: in an environment that passes these tests it finds that a CV can be biased."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, "doctor", "--json"], capture_output=True, text=True, env=environment
        )
        found = json.loads(done.stdout)
        assert done.returncode == 0 and found["problems"] == [], done.stderr
        assert found["auto"]["backend"] == backends.choose() and found["auto"]["platform"]["small"] in SMALL
        assert found["versions"]["openmm"] == installed_versions()["openmm"]
        assert found["platforms"]["found"]["Reference"]["speed"] > 0 and "CPU" in found["platforms"]["names"]
        usable = {name for name, result in found["backends"].items() if result.get("reason", "") is None}
        assert usable == {name for name in backends.BACKENDS if backends.why_not(name) is None}
        assert found["engines"]["encoders"].keys() >= {"et-64", "visnet-64"}
