"""Warp without its greeting, for whoever uses an encoder and never sees that Warp is there."""

import os
import sys
import tempfile
from contextlib import contextmanager

# what Warp's native code says of every machine without a GPU
NO_DRIVER = "Could not find or load the NVIDIA CUDA driver"


def start_warp():
    """Initialise Warp quietly, before TorchMD-Net's import does it aloud in every process.

    Where Warp has been imported already, as in `torchmd-train`, nothing is done.
    """
    if "warp" in sys.modules:
        return
    try:
        import warp
    except ImportError:
        return  # TorchMD-Net's import says what is missing
    # the newer name first
    name, quiet = ("log_level", warp.LOG_WARNING) if hasattr(warp.config, "log_level") else ("quiet", True)
    before = getattr(warp.config, name, None)
    setattr(warp.config, name, quiet)
    try:
        with _native_errors_but(NO_DRIVER):
            warp.init()
    finally:
        setattr(warp.config, name, before)


@contextmanager
def _native_errors_but(text):
    """Leave out the lines with `text` of what native code writes to the standard error stream."""
    try:
        stream = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stream, 2)
            os.close(stream)
            file.seek(0)
            lines = [line for line in file.read().decode(errors="replace").splitlines(True) if text not in line]
            os.write(2, "".join(lines).encode())
