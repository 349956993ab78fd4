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
from numba.core import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator


def content_key(sources) -> str:
    """Hash of the kernel sources (paths) and of the compiler's version."""
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__}".encode())
    for source in sources:
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:16]


def cache_folder(sources) -> Path | None:
    """The first folder that can be written: NUMBA_CACHE_DIR, the user's cache folder, `.cache` next to the sources."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    candidates = [os.environ.get("NUMBA_CACHE_DIR"), user, Path(sources[0]).parent / ".cache"]
    for candidate in candidates:
        if not candidate:
            continue
        folder = Path(candidate) / "openmm-geomgnn" / f"kernels-{content_key(sources)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


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


def _cache(function, path, key):
    """Numba's cache of one function in the folder `path`; `key` is what the compiled function depends on."""

    class Locator(_CacheLocator):
        def ensure_cache_path(self):
            pass  # `cache_folder` has made and tried it

        def get_cache_path(self):
            return str(path)

        def get_source_stamp(self):
            return key

        def get_disambiguator(self):
            return function.__name__

        @classmethod
        def from_function(cls, _function, _file):
            return cls()

    class Implementation(CompileResultCacheImpl):
        _locator_classes = [Locator]

    class Cache(FunctionCache):
        _impl_class = Implementation

        def save_overload(self, sig, data):
            try:
                with _alone(self.cache_path):
                    super().save_overload(sig, data)
            except OSError:
                pass  # a full disk must not stop a simulation: the function is compiled, only not kept

    return Cache(function)


def keep_compiled(dispatcher, sources):
    """Use the folder for a jitted function; without a folder that can be written it is compiled in every process.

    Parameters
    ----------
    dispatcher : what `numba.njit` returns
    sources : sequence of paths
        All files whose code goes into the function.
    """
    folder = cache_folder(sources)
    if folder is not None:
        dispatcher._cache = _cache(dispatcher.py_func, folder, content_key(sources))
    return dispatcher


def signatures(dispatcher) -> list:
    """Types of arguments that a jitted function is compiled for, in this process or in its folder."""
    file = getattr(dispatcher._cache, "_cache_file", None)  # there is none without a folder
    return [*dispatcher.signatures, *(key[0] for key in file._load_index())] if file else list(dispatcher.signatures)


def array_types(kinds):
    """The types of arrays among types of arguments, also of those in tuples."""
    for kind in kinds:
        if isinstance(kind, types.BaseTuple):
            yield from array_types(kind.types)
        elif isinstance(kind, types.Array):
            yield kind


class FixedTypes:
    """Calls jitted functions with arguments of the same types at every call, which the first call decides.

    A jitted function looks at the type of each array in a tuple whenever it is called. Calling its machine code saves
    several microseconds where there are many. Nothing checks the types: the caller must see to them.
    """

    def __init__(self):
        self._code = {}

    def __call__(self, function, *arguments):
        """What the jitted function returns for the arguments."""
        if function not in self._code:
            self._code[function] = function.compile(tuple(map(numba.typeof, arguments)))
        return self._code[function](*arguments)
