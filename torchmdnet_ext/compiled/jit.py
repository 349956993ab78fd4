"""How the kernels of the compiled networks are compiled."""

from numba import njit

# without counting references to arrays: kernels make and return none, and would count all those of a tuple at every call
kernel = njit(error_model="numpy", _nrt=False)
