"""Arrays for compiled kernels: memory that begins at a cache line, tensors in double precision."""

import numpy as np

LINE = 64  # bytes of a cache line: lanes that lie across two of them take twice as long to load


def aligned_zeros(shape, dtype):
    """Like `np.zeros`, but from the beginning of a cache line on."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def to_float64(tensor):
    """A tensor as a float64 ndarray."""
    return tensor.detach().cpu().double().numpy()
