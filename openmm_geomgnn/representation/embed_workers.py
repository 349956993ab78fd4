"""The chunks of an embedding, one after the other in this process or side by side in processes of Dask."""

import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeAlias

import numpy as np
import torch

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.processes import cores, dask_client
from openmm_geomgnn.representation.encoder import Encoder
from openmm_geomgnn.representation.featurization import Featurization
from openmm_geomgnn.representation.store import Embeddings
from openmm_geomgnn.representation.trajectory_files import TrajectoryFile, has_content, has_stamp, holds_times
from openmm_geomgnn.units import NM_TO_ANGSTROM

# folder of the store, topology file, and a name that no other run has
Job: TypeAlias = tuple[str, str, str]
# trajectory and chunk
Task: TypeAlias = tuple[int, int]

# seconds of work in this process before others are started, which takes as long
ALONE = 10.0
# one chunk at a time in a process: trajectory files have one position to read at, and torch uses the threads there are
_TURN = threading.Lock()


def embed_chunks(job: Job, tasks: Sequence[Task], workers: int | None = None, scheduler: str | None = None) -> Iterator[int]:
    """Embed chunks and yield the number of frames of each when it is done.

    Parameters
    ----------
    job : (path, path, str)
        Folder of the store, topology file, and a name that no other run has.
    tasks : list of (int, int)
        Trajectory and chunk.
    workers, scheduler
        As in `embed_trajectories.embed_trajectories`.
    """
    try:
        rest = tasks
        if scheduler is None:
            rest = yield from _alone(job, tasks, workers)
        if rest:
            with ExitStack() as stack:
                yield from _in_dask(_client(stack, len(rest), workers, scheduler), job, rest)
    finally:
        _worker.cache_clear()


def _alone(job: Job, tasks: Sequence[Task], workers: int | None) -> Generator[int, None, Sequence[Task]]:
    """Embed chunks in this process and yield their numbers of frames; returns those that are left for other processes."""
    processes = _default_workers() if workers is None else workers
    began = time.perf_counter()
    for done, task in enumerate(tasks):
        late = workers is not None or time.perf_counter() - began > ALONE
        if late and min(processes, len(tasks) - done) > 1:
            return tasks[done:]
        yield embed_chunk(job, *task)
    return []


def _default_workers() -> int:
    """One for each core, or 1 where there is no Dask to use several."""
    return cores() if find_spec("distributed") else 1


def embed_chunk(job: Job, k: int, number: int) -> int:
    """Embed chunk `number` of trajectory k and write it; returns its number of frames. `job`: see `_worker`."""
    with _TURN:
        return _worker(job).embed(k, number)


@lru_cache(maxsize=1)
def _worker(job: Job) -> "_Worker":
    """What one process keeps from one chunk to the next. job: folder of the store, topology file, a name for this run."""
    return _Worker(*job[:2])


class _Worker:
    """What embeds chunks of a store: everything but the topology is said in the store itself."""

    def __init__(self, output: str, topology: str) -> None:
        self.store = Embeddings.open(output, writable=True)
        settings = self.store.settings
        encoder = Encoder.load(settings["encoder_source"])
        if encoder.content_hash() != settings["encoder_hash"]:
            raise GeomGNNError(
                f"The encoder {settings['encoder_source']} is not the one that {output} was made with: it was changed "
                "meanwhile, or is another one on this machine. Restore it, or embed again with --overwrite."
            )
        self.featurization = Featurization(topology, self.store.spec, encoder)
        self._opened: tuple[int | None, TrajectoryFile | None] = None, None

    def embed(self, k: int, number: int) -> int:
        """Embed chunk `number` of trajectory k and write it; returns its number of frames."""
        stride, interval = (self.store.settings[name] for name in ("stride", "frame_interval"))
        entry, frames = self.store.trajectories[k], self.store.chunks(k)[number]
        pieces, read = [], []
        for piece in self._file(k).blocks(frames.start * stride, (frames.stop - 1) * stride + 1, stride):
            try:
                pieces.append(self.featurization.molecule.positions(piece))
            except GeomGNNError as error:
                raise GeomGNNError(f"{entry['name']}, frames {frames.start} to {frames.stop - 1}: {error}") from error
            read.append(piece.time)
        positions = torch.cat(pieces)
        tokens = self.featurization.tokenizer.embed(positions).numpy()
        if interval is not None:
            times = interval * stride * np.arange(frames.start, frames.stop)
        elif holds_times(entry["path"]):
            times = np.concatenate(read)
        else:
            times = np.full(len(frames), np.nan)
        self.store.write(k, number, tokens, positions.numpy() / NM_TO_ANGSTROM, times)
        return len(frames)

    def _file(self, k: int) -> TrajectoryFile:
        """The trajectory file k, which stays open until another one is needed."""
        opened, file = self._opened
        if file is None or opened != k:
            if file is not None:
                file.close()
            entry = self.store.trajectories[k]
            if not (has_stamp(entry["path"], entry) or has_content(entry["path"], entry)):
                raise GeomGNNError(f"The trajectory {entry['path']} changed while it was being embedded. Start again later.")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a truncated file, when it was entered
                file = TrajectoryFile(entry["path"], self.featurization.topology, entry.get("truncated", False))
            self._opened = k, file
        return file


def _client(stack: ExitStack, n_tasks: int, workers: int | None, scheduler: str | None) -> Any:
    """A client of the user's Dask scheduler, or of processes that end with `stack`."""
    import_distributed()
    processes = min(_default_workers() if workers is None else workers, n_tasks)
    return dask_client(stack, scheduler, n_workers=processes, threads_per_worker=1, processes=True)


def _in_dask(client: Any, job: Job, tasks: Sequence[Task]) -> Iterator[int]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = [client.submit(_in_worker, job, *task, pure=False, priority=-i) for i, task in enumerate(tasks)]
    try:
        for future, frames in as_completed(futures, with_results=True):
            future.release()
            yield frames
    except KilledWorker as error:
        raise GeomGNNError(
            "A worker process ended again and again over the same chunk of frames, mostly for want of memory. What is done "
            "is kept: run the same command with fewer workers, or start again with a smaller chunk."
        ) from error
    finally:
        client.cancel(futures)


def _in_worker(job: Job, k: int, number: int) -> int:
    from distributed import get_worker

    torch.set_num_threads(get_worker().state.nthreads)
    return embed_chunk(job, k, number)


def import_distributed() -> Any:
    """The package distributed; a GeomGNNError says how to install it."""
    try:
        import distributed
    except ImportError as error:
        raise GeomGNNError(
            'Embedding in several processes takes Dask, which is not installed: pip install "openmm-geomgnn[embed]", or '
            "work in one process with --workers 1."
        ) from error
    return distributed
