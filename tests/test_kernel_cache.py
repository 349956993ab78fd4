"""The folder of compiled kernels: processes that start on an empty one together, and what is known to be in it."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from molecules import ala2, random_cv

from openmm_geomgnn.engines.readout_kernels import read_out
from torchmdnet_ext.kernels.cache import signatures

READ_OUT = """
import numpy as np
from openmm_geomgnn.engines.readout_kernels import read_out
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
    assert last[1] == "1"  # it was read, not compiled anew


def test_signatures_of_what_is_compiled():
    bound = random_cv(ala2().topology).bind(ala2().topology, "single", "numba")
    announced = []
    bound.warm_up(lambda: announced.append(bound._engine.needs_compiling))
    assert announced in ([], [True])  # the folder may have the kernels already
    assert signatures(read_out) and not bound._engine.needs_compiling
    bound.warm_up(lambda: pytest.fail("compiled twice"))
