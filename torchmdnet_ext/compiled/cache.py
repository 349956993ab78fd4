"""The cache of the compiled networks' kernels: its key is made of all files that their code comes from."""

from pathlib import Path

from torchmdnet_ext.kernels import cache, lanes

_FUNCTIONS = (
    "jit", "lane_functions", "tensornet_edges", "tensornet_nodes", "visnet_edges", "visnet_edges_vjp", "visnet_graph",
    "visnet_nodes",
)  # fmt: skip
SOURCES = (
    Path(lanes.__file__),
    *sorted(Path(__file__).parent.glob("*_kernels.py")),
    *sorted(Path(__file__).parent.glob("*arguments.py")),
    *(Path(__file__).with_name(f"{name}.py") for name in _FUNCTIONS),
)


def cache_folder() -> Path | None:
    """The folder of the compiled networks' kernels, None if none can be written."""
    return cache.cache_folder(SOURCES)


def keep_compiled(dispatcher):
    """Keep what Numba compiles for a jitted function of a network."""
    return cache.keep_compiled(dispatcher, SOURCES)
