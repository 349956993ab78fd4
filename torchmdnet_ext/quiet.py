"""Suppression of messages of native libraries, such as Warp, which users of an encoder need not know about."""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# message of Warp's native code on every machine without a GPU
NO_DRIVER = "Could not find or load the NVIDIA CUDA driver"


def start_warp() -> None:
    """Initialise Warp quietly, before TorchMD-Net's import does so with messages in every process.

    If Warp has been imported already, as in `torchmd-train`, nothing is done.
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
        with without_lines(NO_DRIVER):
            warp.init()
    finally:
        setattr(warp.config, name, before)


@contextmanager
def without_lines(texts: str | Sequence[str], stream: int = 2) -> Iterator[None]:
    """Filter out lines with a text, or one of several, that native code writes to standard output (1) or error (2)."""
    texts = (texts,) if isinstance(texts, str) else texts
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda file: None
    try:
        original = os.dup(stream)
    except OSError:  # it is closed
        yield
        return
    for file in filter(None, (sys.stdout, sys.stderr)):
        file.flush()
    flush(None)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), stream)
        try:
            yield
        finally:
            flush(None)
            os.dup2(original, stream)
            os.close(original)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines(True)
            lines = [line for line in lines if not any(text in line for text in texts)]
            os.write(stream, "".join(lines).encode())
