"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch

# one thread, here and in every process the tests start: more than the free cores is very slow
torch.set_num_threads(1)
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
pytest.register_assert_rewrite("physics")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository():
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data():
    """The folder of published weights, structures and trajectories next to the repository; the test is skipped without."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data is not next to the repository")
    return folder
