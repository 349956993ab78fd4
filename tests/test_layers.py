"""Dependencies point one way, and what is pure imports no engine and touches no file."""

import ast
import json
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# from the bottom to the top: a room imports from the rooms above its line, not from the others of its line
ROOMS = (
    "torchmdnet_ext",
    "errors units files locks processes jobs unfinished pickling formatting plugins aliases _lazy",
    "representation koopman",
    "cv",
    "force",
    "sampling",
    "analysis conformers",
    "studies",
    "cli",
    "testing",
    "__init__ data encoder store",  # `from openmm_geomgnn.encoder import Encoder` for other people's code
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms.split()}
GROUND = ROOMS[1].split()
NUMERICS = {"numpy", "scipy", "torch"}
# modules of the standard library that are there to touch files or start programs
FILES = {"glob", "io", "json", "multiprocessing", "os", "pathlib", "pickle", "shutil", "subprocess", "tempfile"}
# calls that touch files, of whatever they are methods or functions
READERS = {"fromfile", "genfromtxt", "load", "loadtxt", "memmap", "open", "read_bytes", "read_text"}
WRITERS = {"save", "savetxt", "savez", "savez_compressed", "tofile", "write_bytes", "write_text"}
# packages of numbers in, numbers out, and what of ours they may import
PURE = {
    "openmm_geomgnn/koopman": ("openmm_geomgnn.errors",),
    "openmm_geomgnn/cv/mixers": ("openmm_geomgnn.errors", "openmm_geomgnn.units", "openmm_geomgnn.plugins"),
    "openmm_geomgnn/sampling/opes": ("openmm_geomgnn.errors", "openmm_geomgnn.units", "openmm_geomgnn.pickling"),
}


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


def module(source):
    """The full name of a module, of a package that of its `__init__`."""
    return ".".join(Path(source).with_suffix("").parts).removesuffix(".__init__")


def room(name):
    """The room of a module of ours, or the top-level package of somebody else's."""
    first, *rest = name.split(".")
    return (rest[0] if rest else "__init__") if first == "openmm_geomgnn" else first


def test_every_module_has_its_room():
    assert {room(module(source)) for source in sources("torchmdnet_ext", "openmm_geomgnn")} == set(LEVEL)


@pytest.mark.parametrize("name", LEVEL)
def test_rooms_import_from_below(name):
    for source in sources("torchmdnet_ext", "openmm_geomgnn"):
        if room(module(source)) == name:
            ours = {room(imported) for imported in imports(source)} & LEVEL.keys() - {name}
            others = ours if name not in GROUND else ours - set(GROUND)
            upwards = [other for other in others if LEVEL[other] >= LEVEL[name]]
            assert not upwards, f"{source} imports {upwards}"


def test_pytest_is_imported_by_the_suites_only():
    ours = sources("torchmdnet_ext", "openmm_geomgnn")
    users = {room(module(source)) for source in ours if "pytest" in map(room, imports(source))}
    assert users == {"testing"}


def test_no_import_cycle():
    """Also not one that an import inside a function hides."""
    modules = {module(source): source for source in sources("torchmdnet_ext", "openmm_geomgnn")}
    graph = {name: modules.keys() & set(imports(source)) - {name} for name, source in modules.items()}
    for name, source in modules.items():  # `from package.module import function`
        graph[name] |= {found for full in imports(source) if (found := full.rpartition(".")[0]) in modules} - {name}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert len(order) == len(modules)


def test_torchmdnet_ext_does_not_know_openmm():
    for source in sources("torchmdnet_ext"):
        assert not {room(name) for name in imports(source)} & {"openmm", "simtk", "mdtraj"}, source


@pytest.mark.parametrize(
    ("source", "allowed"), [(source, allowed) for folder, allowed in PURE.items() for source in sources(folder)]
)
def test_pure_modules(source, allowed):
    """Numbers in, numbers out: numerical libraries, errors and units only, and no files."""
    own = module(Path(source).parent / "__init__.py")
    names = {name for name in imports(source) if not f"{name}.".startswith(f"{own}.")}
    others = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names | NUMERICS}
    assert not [name for name in others if not name.startswith(allowed)]
    assert not {room(name) for name in names} & FILES
    if "opes" in source:
        assert "torch" not in map(room, names)
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            assert called not in READERS | WRITERS, f"line {node.lineno}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("openmm_geomgnn, torchmdnet_ext", ["openmm", "torch", "torchmdnet", "numpy"]),
        ("openmm_geomgnn.koopman, openmm_geomgnn.cv.mixers", ["openmm", "torchmdnet", "mdtraj"]),
        ("openmm_geomgnn.sampling, openmm_geomgnn.sampling.opes", ["openmm", "torch", "torchmdnet"]),
        # a file of settings is read, and --help shown, at once
        (
            "openmm_geomgnn.cli.main, openmm_geomgnn.cli.settings.yaml_files",
            ["openmm", "torch", "torchmdnet", "mdtraj", "numpy"],
        ),
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
