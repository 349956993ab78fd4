"""How the kernels of the compiled networks are compiled."""

from typing import Any

from numba import njit

# without counting references to arrays: kernels make and return none, and would count all those of a tuple at every call
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "_nrt": False}
kernel = njit(**_OPTIONS)
# steps of a kernel that are called in one place or few: put into it before it is compiled, which takes less time
step = njit(**_OPTIONS, inline="always")
