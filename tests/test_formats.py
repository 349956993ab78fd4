"""A file of every version of every format that was ever written is read, and gives what the code that wrote it gave."""

import importlib.util
import json
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import phi_runs
import pytest
import torch

from openmm_geomgnn import Encoder
from openmm_geomgnn.cv import CollectiveVariable
from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.sampling import OPES
from openmm_geomgnn.sampling.checkpoint import load_checkpoint
from openmm_geomgnn.store import Embeddings
from torchmdnet_ext.checkpoints import read_denoiser
from torchmdnet_ext.datasets.conformers import Conformers

FORMATS = next(folder for folder in Path(__file__).resolve().parents if folder.name == "tests") / "data" / "formats"
PDB = FORMATS / "ala2.pdb"
FRAMES = mdtraj.load(str(PDB))
FRAGMENT = 6  # atoms that encoders are compared on
FIRST_CV_WITH_BONDS, FIRST_CV_WITH_VALIDATION = 5, 4
needs_python_force = pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="OpenMM has no PythonForce")
CLOSE = {"rtol": 1e-5, "atol": 1e-4}  # sums in single precision, in another order on each processor: 4e-5 was seen


def contents(folder):
    """The files, or folders, that there are values of."""
    return [
        path.with_suffix("") if path.with_suffix("").is_dir() else path.with_suffix(".safetensors")
        for path in sorted(folder.glob("*.json"))
    ]


def values_of(path):
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def number(path):
    """The version in a name."""
    return int(path.name.partition("-")[0])


def check_cv(path):
    expected, version = values_of(path), number(path)
    with pytest.warns(UserWarning, match="of an older version") if version < FIRST_CV_WITH_BONDS else nullcontext():
        psi = CollectiveVariable.load(path).bind(PDB, engine="eager").compute(FRAMES)
    np.testing.assert_allclose(psi, expected["psi"], **CLOSE)
    cv = CollectiveVariable.load(path)
    scores = dict(expected["training"])
    if version < FIRST_CV_WITH_VALIDATION and "vampnet" in path.name:
        scores["vamp2_validation"] = scores.pop("vamp2_held_out")
    assert {name: value for name, value in cv.training_information.items() if name.startswith("vamp2")} == scores
    assert cv.lagtime == expected["lag_time_ps"] == 2.0


def check_encoder(path):
    expected = values_of(path)
    z = np.array([atom.element.atomic_number for atom in FRAMES.topology.atoms])[:FRAGMENT]
    pos = 10 * FRAMES.xyz[:, :FRAGMENT]
    encoder = Encoder.load(path)
    x, v = encoder.embed(z, pos, engine="eager")
    np.testing.assert_allclose(x, expected["x"], **CLOSE)
    np.testing.assert_allclose(v, expected["v"], **CLOSE)
    assert encoder.training_information == expected["training"]
    assert (encoder.head is None) == ("noise" not in expected)
    if "noise" in expected:
        with torch.no_grad():
            noise = read_denoiser(path)(torch.tensor(z), torch.tensor(pos[0]), torch.zeros(FRAGMENT, dtype=torch.long))
        np.testing.assert_allclose(noise, expected["noise"], **CLOSE)


def check_conformers(path):
    expected = values_of(path)
    dataset = Conformers(path)
    assert dataset.sources == expected["sources"] and dataset.how == expected.get("how", dataset.how)
    for data, source, given in zip(dataset, dataset.source, expected["conformers"], strict=True):
        assert data.z.tolist() == given["z"] and dataset.sources[int(source)] == given["source"]
        np.testing.assert_allclose(data.pos, given["pos"], rtol=1e-6)


def check_embeddings(path):
    expected = values_of(path)
    store = Embeddings.open(path)
    store.check(content=True)
    assert store.trajectories[0]["name"] == expected["name"] and store.trajectories[0]["sha256"] == expected["sha256"]
    for name, found in (("tokens", store.tokens(0)), ("positions", store.positions(0)), ("times", store.times(0))):
        np.testing.assert_allclose(found[:], expected[name], rtol=1e-6)


def check_run(path):
    expected, checkpoint = values_of(path), load_checkpoint(path / "checkpoint.safetensors")
    assert checkpoint.step == expected["step"] and vars(checkpoint.written) == expected["written"]
    assert [len(state) for state in checkpoint.walkers] == expected["bytes"]
    for name in ("bias", "heat"):
        found = getattr(checkpoint, name)
        for key, value in expected[name].items():
            np.testing.assert_array_equal(found[key], np.array(value), err_msg=key)
    opes = OPES(**expected["opes"])
    potential, slope = opes.bias(opes.from_arrays(checkpoint.bias), np.array(expected["at"]))
    np.testing.assert_allclose([potential, *slope], [expected["potential"], *expected["slope"]], rtol=1e-9)


CHECKS = {
    "cv": check_cv,
    "encoder": check_encoder,
    "conformers": check_conformers,
    "conformer_index": check_conformers,
    "embeddings": check_embeddings,
    "run": check_run,
}


@pytest.fixture(scope="module")
def make():
    """tests/data/formats/make.py, a module."""
    spec = importlib.util.spec_from_file_location("make_formats", FORMATS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("kind", "path"),
    [pytest.param(kind, path, id=f"{kind}-{path.stem}") for kind in CHECKS for path in contents(FORMATS / kind)],
)
def test_old_files_give_what_they_gave(kind, path, make):
    assert make.version(path) == number(path)
    CHECKS[kind](path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKS)
def test_a_file_of_each_version_is_kept(kind, make, tmp_path):
    """So is one of the version that is written now: whoever raises the version of a format adds files of it."""
    make.MAKERS[kind](tmp_path)
    written, kept = ({make.version(path) for path in contents(folder)} for folder in (tmp_path, FORMATS / kind))
    assert kept == set(range(1, max(written) + 1)), f"{FORMATS / 'README.md'} says how to add files of a version"
    for path in contents(tmp_path):
        CHECKS[kind](path)


@pytest.mark.parametrize("path", contents(FORMATS / "cv"), ids=lambda path: path.stem)
def test_an_old_cv_is_saved_in_the_current_version(path, make, tmp_path):
    CollectiveVariable.load(path).save(tmp_path / "new.safetensors")
    assert make.version(tmp_path / "new.safetensors") == max(map(number, contents(FORMATS / "cv")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that bonds are not known stays so
        psi = CollectiveVariable.load(tmp_path / "new.safetensors").bind(PDB, engine="eager").compute(FRAMES)
    np.testing.assert_allclose(psi, values_of(path)["psi"], **CLOSE)


@needs_python_force
@pytest.mark.parametrize("name", ["1-run", "2-without-checksum"])
def test_an_old_run_goes_on(name, tmp_path):
    if openmm.version.short_version != values_of(FORMATS / "run" / f"{name}.json")["openmm"]:
        pytest.skip("OpenMM reads only checkpoints that the same version of it wrote")
    folder = shutil.copytree(FORMATS / "run" / name, tmp_path / "run")
    before = (folder / "COLVAR").read_bytes()
    done = phi_runs.run(folder, 2.5)
    assert done.began == pytest.approx(2.004) and done.time == pytest.approx(2.5, abs=0.007)
    assert (folder / "COLVAR").read_bytes().startswith(before)
    assert (folder / "COLVAR").stat().st_size > len(before)


@needs_python_force
def test_a_run_with_another_integrator_is_refused(tmp_path):
    """OpenMM's MTSLangevinIntegrator, which the first runs with multiple time steps had."""
    folder = shutil.copytree(FORMATS / "run" / "1-other-integrator", tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(GeomGNNError, match="belongs to a run with another .*start a new run in another folder"):
        phi_runs.run(folder, 2.5)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
