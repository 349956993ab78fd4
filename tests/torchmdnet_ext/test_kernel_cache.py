"""The folder of compiled kernels: processes that start on an empty one together, and what is known to be in it."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

from molecules import ala2, random_cv

from openmm_geomgnn.cv.readouts import cache as readout_cache
from openmm_geomgnn.cv.readouts.linear_kernels import read_out
from openmm_geomgnn.cv.students import kernels as student_kernels
from torchmdnet_ext.compiled import cache as kernel_cache
from torchmdnet_ext.kernels import message_kernels, tensornet_messages, visnet_messages
from torchmdnet_ext.kernels.cache import signatures

pytestmark = pytest.mark.slow

READ_OUT = """
import numpy as np
from openmm_geomgnn.cv.readouts import cache as readout_cache
from openmm_geomgnn.cv.readouts.linear_kernels import read_out
x, v = np.arange(6.0).reshape(2, 3), np.arange(18.0).reshape(2, 3, 3)
own, token, share = np.arange(2), np.zeros(2, int), np.ones(1)
psi, _, _ = read_out(x, v, own, token, share, 0.0, 1e-6, np.zeros(6), np.ones((6, 1)))
print(float(psi[0]), sum(read_out.stats.cache_hits.values()))
"""


def test_processes_that_start_on_an_empty_folder_at_once(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def start():
        return subprocess.Popen([sys.executable, "-c", READ_OUT], env=environment, stdout=subprocess.PIPE, text=True)

    def answer(process):
        text, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return text.split()

    together = [answer(process) for process in [start() for _ in range(2)]]
    last = answer(start())
    vectors = np.arange(18.0).reshape(2, 3, 3).sum(0)
    expected = np.arange(6.0).sum() + np.sqrt(np.square(vectors).sum(0) + 1e-6).sum()
    assert [float(value) for value, _ in [*together, last]] == pytest.approx([expected] * 3, rel=1e-14)
    assert last[1] == "1"  # it was read, not compiled again


def test_signatures_of_what_is_compiled():
    bound = random_cv(ala2().topology).bind(ala2().topology, "single", "numba")
    announced = []
    parts = bound._engine, bound._readout
    bound.warm_up(lambda: announced.append(any(part.needs_compiling for part in parts)))
    assert announced in ([], [True])  # the folder may have the kernels already
    assert signatures(read_out) and not any(part.needs_compiling for part in parts)
    bound.warm_up(lambda: pytest.fail("compiled twice"))


OURS = "openmm_geomgnn", "torchmdnet_ext"
# modules that keep what they compile in a folder, and the sources that its key is made of
KEPT = {
    message_kernels: message_kernels.SOURCES,
    tensornet_messages: tensornet_messages.SOURCES,
    visnet_messages: visnet_messages.SOURCES,
    student_kernels: student_kernels._SOURCES,
}
READOUTS = "openmm_geomgnn.cv.readouts."
KERNELS = READOUTS, "torchmdnet_ext.compiled.", "torchmdnet_ext.kernels."
KEEPERS = {
    f"{READOUTS}cache",
    "torchmdnet_ext.compiled.cache",
    "torchmdnet_ext.kernels.cache",
}  # no code of theirs is compiled


def modules_that(call):
    for package in OURS:
        for file in Path(importlib.util.find_spec(package).origin).parent.rglob("*.py"):
            if call in file.read_text():
                parts = file.relative_to(Path(importlib.util.find_spec(package).origin).parents[1]).with_suffix("").parts
                yield ".".join(parts)


def code_of(name, found=()):
    """The files of a module of ours and of all others that its compiled code, or a constant in it, comes from."""
    file = importlib.util.find_spec(name).origin
    if file in found or file.endswith("__init__.py"):
        return set(found)
    found = {*found, file}
    nodes = [node for node in ast.walk(ast.parse(Path(file).read_text())) if isinstance(node, ast.ImportFrom)]
    if not name.startswith(KERNELS) and not any(node.module == "numba" for node in nodes):
        return found  # constants only
    for node in nodes:
        if node.module.split(".")[0] in OURS and node.module not in KEEPERS:
            submodules = (f"{node.module}.{alias.name}" for alias in node.names)
            for other in (node.module, *(name for name in submodules if name in sys.modules)):
                found = code_of(other, found)
    return found


def kept_by(name):
    return readout_cache.SOURCES if name.startswith(READOUTS) else kernel_cache.SOURCES


def test_the_key_of_a_kernel_sees_all_of_its_code():
    """A change in a file that is not named would not make the kernels be compiled again."""
    names = set(modules_that("keep_compiled(")) - KEEPERS
    assert {module.__name__ for module in KEPT} < names and len(names) > 6
    sources = {module.__name__: files for module, files in KEPT.items()}
    for name in names:
        needed, named = code_of(name), set(map(str, sources.get(name, kept_by(name))))
        assert needed <= named, f"the code of {name} also comes from {', '.join(sorted(needed - named))}"
    assert max(len(code_of(name)) for name in names) > 6
