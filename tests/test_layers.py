"""Dependencies point one way, and what is pure imports no engine and touches no file."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# from the bottom to the top: what stands in a line may import what stands above it, not the others of its line
LAYERS = (
    ("torchmdnet_ext",),
    ("openmm_geomgnn.__init__", "openmm_geomgnn.errors"),
    ("openmm_geomgnn.units", "openmm_geomgnn.files", "openmm_geomgnn.locks", "openmm_geomgnn.processes"),
    ("openmm_geomgnn.formats", "openmm_geomgnn.intervals", "openmm_geomgnn.trajectory_heads"),
    ("openmm_geomgnn.cv_file", "openmm_geomgnn.cv_verdict", "openmm_geomgnn.frame_times", "openmm_geomgnn.trajectory_bytes"),
    ("openmm_geomgnn.bond_graph", "openmm_geomgnn.unfinished"),
    ("openmm_geomgnn.engines", "openmm_geomgnn.selection", "openmm_geomgnn.trajectory_files"),
    ("openmm_geomgnn.matching",),
    ("openmm_geomgnn.whole",),
    ("openmm_geomgnn.bound", "openmm_geomgnn.contacts", "openmm_geomgnn.encoder", "openmm_geomgnn.store"),
    ("openmm_geomgnn.students", "openmm_geomgnn.training_data", "openmm_geomgnn.windows"),
    ("openmm_geomgnn.token_settings", "openmm_geomgnn.tokens"),
    ("openmm_geomgnn.embedding_workers", "openmm_geomgnn.koopman", "openmm_geomgnn.mixers"),
    ("openmm_geomgnn.mixer_readout",),
    ("openmm_geomgnn.readout",),
    ("openmm_geomgnn.cv", "openmm_geomgnn.embedding", "openmm_geomgnn.stiffness"),
    ("openmm_geomgnn.backends", "openmm_geomgnn.fitting", "openmm_geomgnn.integrators"),
    ("openmm_geomgnn.distillation", "openmm_geomgnn.force"),
    ("openmm_geomgnn.sampling",),
    ("openmm_geomgnn.analysis", "openmm_geomgnn.conformers"),
    ("openmm_geomgnn.cli", "openmm_geomgnn.data"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
NUMERICS = {"numpy", "scipy", "torch"}
# modules of the standard library that are there to touch files or start programs
FILES = {"glob", "io", "json", "multiprocessing", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
# calls that touch files, of whatever they are methods or functions
READERS = {"fromfile", "genfromtxt", "load", "loadtxt", "memmap", "open", "read_bytes", "read_text"}
WRITERS = {"save", "savetxt", "savez", "savez_compressed", "tofile", "write_bytes", "write_text"}
BIASES = [f"openmm_geomgnn/sampling/{name}.py" for name in ("opes", "opes_state", "kernels", "settings")]


def sources(*folders):
    return [path.relative_to(ROOT).as_posix() for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@cache
def tree(source):
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def imports(source):
    """Full names of all that a file imports, also within functions."""
    package = list(Path(source).parent.parts)
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def unit(name):
    """The line of LAYERS that a module's full name belongs to, or the top-level package of somebody else's."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "openmm_geomgnn" else parts[0]


def unit_of_source(source):
    parts = Path(source).with_suffix("").parts
    return unit(".".join(parts))


def test_every_module_has_its_place():
    assert {unit_of_source(source) for source in sources("torchmdnet_ext", "openmm_geomgnn")} == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_dependencies_point_one_way(name):
    checked = 0
    for source in sources("torchmdnet_ext", "openmm_geomgnn"):
        if unit_of_source(source) == name:
            ours = {unit(imported) for imported in imports(source)} & LEVEL.keys()
            upwards = [other for other in ours - {name} if LEVEL[other] >= LEVEL[name]]
            assert not upwards, f"{source} imports {upwards}"
            checked += 1
    assert checked


def test_torchmdnet_ext_does_not_know_openmm():
    for source in sources("torchmdnet_ext"):
        assert not {unit(name) for name in imports(source)} & {"openmm", "simtk", "mdtraj"}, source


@pytest.mark.parametrize("source", sources("openmm_geomgnn/koopman", "openmm_geomgnn/mixers") + BIASES)
def test_pure_modules(source):
    """Numbers in, numbers out: numerical libraries, errors and units only, and no files."""
    own = unit_of_source(source)
    others = {unit(name) for name in imports(source)} - sys.stdlib_module_names - NUMERICS
    assert others <= {own, "openmm_geomgnn.errors", "openmm_geomgnn.units"}
    assert not {unit(name) for name in imports(source)} & FILES
    if source in BIASES:
        within = {name.split(".")[2] for name in imports(source) if name.startswith("openmm_geomgnn.sampling.")}
        assert within <= {Path(bias).stem for bias in BIASES} and "torch" not in map(unit, imports(source))
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            assert called not in READERS | WRITERS, f"line {node.lineno}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("openmm_geomgnn, torchmdnet_ext", ["openmm", "torch", "torchmdnet", "numpy"]),
        ("openmm_geomgnn.koopman, openmm_geomgnn.mixers", ["openmm", "torchmdnet", "mdtraj"]),
        ("openmm_geomgnn.sampling, openmm_geomgnn.sampling.opes", ["openmm", "torch", "torchmdnet"]),
        # a file of settings is read, and --help shown, at once
        ("openmm_geomgnn.cli.main, openmm_geomgnn.cli.config", ["openmm", "torch", "torchmdnet", "mdtraj", "numpy"]),
        # walkers without a learned CV start in a second
        ("openmm_geomgnn.sampling.runner", ["torch", "torchmdnet", "mdtraj"]),
        ("torchmdnet_ext.checkpoints, torchmdnet_ext.models.visnet", ["openmm", "mdtraj"]),
    ],
)
def test_what_an_import_brings(modules, absent):
    code = f"import json, sys, {modules}; print(json.dumps([name for name in {absent} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_bias_is_imported_from_sampling():
    from openmm_geomgnn import sampling
    from openmm_geomgnn.sampling.opes import OPES, OPESState

    assert sampling.OPES is OPES and isinstance(OPES(40, 500, sigma=0.1).initial_state(), OPESState)
