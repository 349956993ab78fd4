"""What a process of a walker imports: a run starts one for each walker, and each waits for that."""

import json
import subprocess
import sys
import textwrap

import pytest

# none of them is needed by a walker that evaluates a network, and some take longer to import than torch
SLOW = (
    *("torchmdnet", "warp", "torch._dynamo", "torch_geometric", "pandas", "sklearn", "deeptime", "matplotlib"),
    "scipy.interpolate",
)


@pytest.mark.slow
def test_a_walker_imports_what_it_needs(cv_file):
    code = f"""
        import json, sys
        from importlib.resources import files
        from openmm_geomgnn.sampling.opes.method import OPES
        from openmm_geomgnn.sampling.walker import Walker
        from openmm_geomgnn.sampling.walker_spec import WalkerSpec

        structure = str(files("openmm_geomgnn") / "data" / "ala2-c7eq.pdb")
        bias = OPES(barrier=40, pace=500, sigma=0.2)
        walker = Walker(WalkerSpec(structure, platform="Reference", cv_path={str(cv_file)!r}, bias=bias, engine="numba"))
        walker.start()
        walker.advance(bias.initial_state(), 2)
        print(json.dumps([name for name in {SLOW!r} if name in sys.modules]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
