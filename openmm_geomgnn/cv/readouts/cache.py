"""The cache of the read-outs' compiled kernels: its key is made of all files that their code comes from."""

from pathlib import Path
from typing import Any

from torchmdnet_ext.compiled.cache import SOURCES as NETWORK_SOURCES
from torchmdnet_ext.kernels import cache

SOURCES = (
    *NETWORK_SOURCES,
    *sorted(Path(__file__).parent.glob("*_kernels.py")),
    Path(__file__).with_name("mixer_arguments.py"),
    Path(__file__).with_name("gelu_functions.py"),
)


def keep_compiled(dispatcher: Any) -> Any:
    """Keep what Numba compiles for a jitted function of a read-out."""
    return cache.keep_compiled(dispatcher, SOURCES)
