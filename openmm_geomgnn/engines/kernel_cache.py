"""Where compiled kernels are kept: in a folder of the user, under a key made of the content of all kernel sources.

Numba's own key is the one file in which a function is defined, so a change in a file it calls into would go unnoticed.
Numba writes files under temporary names and renames them; a lock keeps two processes from giving one name to two functions.
"""

import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

import llvmlite
import numba
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

SOURCES = ("lanes.py", "node_kernels.py", "pair_kernels.py", "et_kernels.py")


def content_key() -> str:
    """Hash of all kernel sources and of the compiler's version."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """The first folder that can be written: NUMBA_CACHE_DIR, the user's cache folder, `.cache` next to this file."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    candidates = [os.environ.get("NUMBA_CACHE_DIR"), user, Path(__file__).parent / ".cache"]
    for candidate in candidates:
        if not candidate:
            continue
        folder = Path(candidate) / "openmm-geomgnn" / f"kernels-{content_key()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


class _Locator(_CacheLocator):
    """Tells Numba the folder and what a compiled function depends on."""

    def __init__(self, function, path):
        self.function, self.path = function, path

    def ensure_cache_path(self):
        pass  # `cache_folder` has made and tried it

    def get_cache_path(self):
        return str(self.path)

    def get_source_stamp(self):
        return content_key()

    def get_disambiguator(self):
        return self.function.__name__

    @classmethod
    def from_function(cls, function, file):
        path = cache_folder()
        return None if path is None else cls(function, path)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]


@contextmanager
def _alone(folder):
    """Hold the lock of a folder; where the file system has no locks, go ahead without."""
    with open(Path(folder) / "lock", "w") as handle:
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


class _KernelCache(FunctionCache):
    _impl_class = _Implementation

    def save_overload(self, sig, data):
        try:
            with _alone(self.cache_path):
                super().save_overload(sig, data)
        except OSError:
            pass  # a full disk must not stop a simulation: the function is compiled, only not kept


def keep_compiled(dispatcher):
    """Use the folder for a jitted function; without a folder that can be written it is compiled in every process."""
    if cache_folder() is not None:
        dispatcher._cache = _KernelCache(dispatcher.py_func)
    return dispatcher
