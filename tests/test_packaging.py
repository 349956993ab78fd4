"""The wheel in an environment of its own: TorchMD-Net learns of us when it is installed and forgets when it is removed.

The environment sees the dependencies of this one through links, all but openmm-geomgnn itself, so that what is tested is
the wheel and nothing has to be downloaded.
"""

import base64
import configparser
import csv
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import site
import subprocess
import sys
import textwrap
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

pytestmark = pytest.mark.slow

PACKAGES = ("openmm_geomgnn", "torchmdnet_ext")
DATA = (".safetensors", ".pdb", ".yaml", ".typed")


def run(*command, cwd=None):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment.update(OMP_NUM_THREADS="1", COLUMNS="200", PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def wheel(repository, tmp_path_factory):
    """The wheel, built from a copy of the sources so that nothing built before gets into it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(repository / name, folder / "source" / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, folder / "source")
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "source")
    (file,) = folder.glob("*.whl")
    return file


class Environment:
    """A virtual environment that sees the packages of this one, except ours."""

    def __init__(self, folder):
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self.site_packages = Path(self.evaluate("import sysconfig; print(sysconfig.get_path('purelib'))"))
        dependencies = folder / "dependencies"
        dependencies.mkdir()
        for entry in (entry for path in site.getsitepackages() if Path(path).is_dir() for entry in Path(path).iterdir()):
            ours = entry.name in PACKAGES or "openmm_geomgnn" in entry.name
            if not (ours or entry.suffix == ".pth" or (dependencies / entry.name).exists()):
                (dependencies / entry.name).symlink_to(entry)
        (self.site_packages / "dependencies.pth").write_text(f"{dependencies}\n")

    def evaluate(self, code):
        """What code prints last, run from a folder without our sources."""
        return run(self.python, "-c", textwrap.dedent(code), cwd=self.folder).stdout.splitlines()[-1]

    def pip(self, *arguments):
        run(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)

    def contents(self):
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return sorted(str(path) for path in paths if "__pycache__" not in path.parts)


def check_torchmdnet_is_unmodified():
    """Compare TorchMD-Net's files with the hashes in its own wheel."""
    distribution = importlib.metadata.distribution("torchmd-net")
    checked = 0
    for name, digest, _ in csv.reader(distribution.read_text("RECORD").splitlines()):
        if digest and name.startswith("torchmdnet/"):
            method, _, expected = digest.partition("=")
            found = hashlib.new(method, Path(distribution.locate_file(name)).read_bytes()).digest()
            assert base64.urlsafe_b64encode(found).decode().rstrip("=") == expected, name
            checked += 1
    assert checked > 20


def test_wheel_holds_packages_data_and_entry_points(wheel, repository):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    for package in PACKAGES:
        for path in (repository / package).rglob("*"):
            if path.suffix in (".py", *DATA):
                assert str(path.relative_to(repository)) in names
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}  # no tests, no protocols as packages
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)
    assert "[torch.backends]\nopenmm_geomgnn = torchmdnet_ext._autoload:register" in entry_points
    assert "geomgnn = openmm_geomgnn.cli.main:main" in entry_points
    assert metadata["Name"].replace("_", "-") == "openmm-geomgnn"
    assert any(line.startswith("torchmd-net") for line in metadata.get_all("Requires-Dist"))


def test_install_use_and_remove(wheel, tmp_path):
    torchmd_train = Path(sys.executable).parent / "torchmd-train"
    environment = Environment(tmp_path / "environment")
    before = environment.contents()
    check_torchmdnet_is_unmodified()

    environment.pip("install", "--no-deps", wheel)
    assert "run" in run(environment.folder / "bin" / "geomgnn", "--help", cwd=tmp_path).stdout
    found = json.loads(
        environment.evaluate(
            """
            import json, sys, warnings
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                from torchmdnet import datasets
                from torchmdnet.models import __all_models__, model
                from torchmdnet.scripts.train import get_argparse
                import openmm_geomgnn, torchmdnet_ext
                from openmm_geomgnn import Encoder
                from openmm_geomgnn.representation.encoder import shipped_encoders
            print(json.dumps({
                "files": [openmm_geomgnn.__file__, torchmdnet_ext.__file__, Encoder.load.__func__.__code__.co_filename],
                "models": __all_models__,
                "encoders": {name: Encoder.load(name).hidden_channels for name in shipped_encoders()},
                "conformers": [len(datasets.Conformers()), str(datasets.Conformers().file)],
                "help": get_argparse().format_help(),
                "warnings": [str(w.message) for w in caught if "openmm-geomgnn" in str(w.message)],
            }))
            """
        )
    )
    for file in (*found["files"], found["conformers"][1]):
        assert file.startswith(str(environment.site_packages))
    assert "visnet" in found["models"] and found["conformers"][0] > 1000 and found["warnings"] == []
    assert "visnet" in found["help"] and "--smooth-cutoff" in found["help"]

    environment.pip("uninstall", "--yes", "openmm-geomgnn")
    assert environment.contents() == before
    check_torchmdnet_is_unmodified()
    help_text = run(environment.python, torchmd_train, "--help", cwd=tmp_path)
    assert "equivariant-transformer" in help_text.stdout and "openmm-geomgnn" not in help_text.stderr
    for name in ("visnet", "smooth", "Denoising", "openmm-geomgnn"):
        assert name not in help_text.stdout


def test_set_up_builds_in_isolation(repository):
    """What is published as source only is built with what its own pyproject.toml asks for.

    TorchMD-Net, for one, takes its version from setuptools_scm. Without isolation, and without that package, it calls
    itself 0.0.0 and pip refuses it, unless a wheel that was built earlier lies in pip's cache.
    """
    set_up = [
        (repository / name).read_text()
        for name in ("Makefile", "README.md", "CONTRIBUTING.md", ".ci/run")
        if (repository / name).exists()
    ]
    installs = [line for text in set_up for line in text.splitlines() if re.search(r"pip3? install", line)]
    assert any(".[all" in line for line in installs) and any("openmmtorch" in line for line in installs)
    assert not [text for text in set_up if re.search(r"no.build.isolation", text, re.IGNORECASE)]
    # a wheel in the cache of an earlier build would hide a build that fails
    assert {"HOME", "PIP_CACHE_DIR"} <= set(re.findall(r"(\w+)=", (repository / ".ci" / "run").read_text()))


def requirements(repository):
    """The requirements in setup.cfg, those of the package itself under `package` and the others under their extra's name."""
    options = configparser.ConfigParser()
    options.read(repository / "setup.cfg")
    texts = {"package": options["options"]["install_requires"], **options["options.extras_require"]}
    del texts["all"]
    return {name: [Requirement(line) for line in text.split("\n") if line] for name, text in texts.items()}


def pins(file):
    """The version of each package that a file of constraints pins."""
    pinned = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(), re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in pinned}


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("constraints.txt", ("fast", "report", "embed", "data", "project", "test", "interoperability", "lint", "docs")),
        ("constraints-openmm-torch.txt", ("fast", "test")),
        ("constraints-lowest.txt", ("fast", "report", "embed", "data", "project", "test")),
    ],
)
def test_constraints_pin_what_is_installed(repository, file, extras):
    """Every requirement of setup.cfg that `make` installs with these constraints has its version there, which it allows."""
    pinned = pins(repository / file)
    for requirement in (each for extra in ("package", *extras) for each in requirements(repository)[extra]):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name


def test_lowest_versions_are_tested(repository):
    """`make test-lowest` runs with the lower bounds of setup.cfg, except two.

    OpenMM's is for openmm-torch, with which `make test-openmm-torch` runs; what the extra `interoperability` needs is newer
    than these versions, and its bounds are those of constraints.txt.
    """
    files = {
        "openmm": "constraints-openmm-torch.txt",
        **dict.fromkeys(("openmmml", "openmmtools", "openmm-opes"), "constraints.txt"),
    }
    bounds = {
        canonicalize_name(requirement.name): Version(bound.version)
        for extra, group in requirements(repository).items()
        if extra not in ("lint", "docs")
        for requirement in group
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    lowest = {name: pins(repository / files.get(name, "constraints-lowest.txt"))[name] for name in bounds}
    assert bounds == lowest and len(bounds) > 25
    assert pins(repository / "constraints-lowest.txt").keys() <= bounds.keys()
