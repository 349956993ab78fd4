"""Walkers in parallel: each in a process of its own, or a single one in this process."""

import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from openmm_geomgnn.errors import GeomGNNError
from openmm_geomgnn.files import Closing
from openmm_geomgnn.processes import how_it_ended, start_process
from openmm_geomgnn.sampling.walker import Walker, WalkerFacts
from openmm_geomgnn.sampling.walker_spec import WalkerSpec


class WalkerPool(Closing):
    """The walkers of a run, driven in lockstep.

    specs: list of WalkerSpec. step: the outer step at which they begin. separate: whether each runs in its own process; by
    default if there is more than one. Use it as a context manager.

    Raises GeomGNNError if a walker cannot be made: here or, for a walker in another process, at the first use.
    """

    def __init__(self, specs: Sequence[WalkerSpec], step: int = 0, separate: bool | None = None) -> None:
        self._specs = list(specs)
        separate = len(self._specs) > 1 if separate is None else separate
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        self._walkers: list[Walker] = []
        self._torch_threads: int | None = None
        self._facts: list[WalkerFacts] | None = None
        self._call: tuple[str, Sequence[tuple]] | None = None
        try:
            if separate:
                self._start(step)
            else:
                self._walkers = [Walker(spec, step) for spec in self._specs]
                self._facts = [walker.facts for walker in self._walkers]
                self._limit_torch()
        except BaseException:
            self.close()
            raise

    def _start(self, step: int) -> None:
        for spec in self._specs:
            process, connection = start_process(_serve, spec, step)
            self._processes.append(process)
            self._connections.append(connection)

    def _limit_torch(self) -> None:
        """Limit the number of threads for the run only: in this process it is the user's setting."""
        torch = sys.modules.get("torch")
        if torch is not None:
            self._torch_threads = torch.get_num_threads()
            torch.set_num_threads(1)

    @property
    def facts(self) -> list[WalkerFacts]:
        """A list of WalkerFacts; waits until the walkers are made."""
        if self._facts is None:
            self._facts = self._answers()
        return self._facts

    def call(self, method: str, arguments: Sequence[tuple]) -> list[Any]:
        """Call a method of all walkers at once. arguments: a tuple per walker. Returns the results in their order.

        Raises the GeomGNNError of a walker, or a GeomGNNError with the traceback of another exception, or one that says how
        the process of a walker ended.
        """
        self.send(method, arguments)
        return self.receive()

    def send(self, method: str, arguments: Sequence[tuple]) -> None:
        """First half of `call`: start the walkers in their processes and return."""
        if self._walkers:
            self._call = method, arguments
            return
        _ = self.facts  # the first answers
        for spec, connection, args in zip(self._specs, self._connections, arguments, strict=True):
            try:
                connection.send((method, args))
            except OSError as error:
                raise self._death(spec, self._processes[self._connections.index(connection)]) from error

    def receive(self) -> list[Any]:
        """Second half of `call`: wait for the results."""
        if self._call is not None:
            method, arguments = self._call
            return [getattr(walker, method)(*args) for walker, args in zip(self._walkers, arguments, strict=True)]
        return self._answers()

    def _answers(self) -> list[Any]:
        answers = {}
        waiting = {connection: i for i, connection in enumerate(self._connections)}
        while waiting:
            # whichever comes first: a walker that fails must not wait for a slower one
            ready: list[Any] = wait(list(waiting))
            for connection in ready:
                i = waiting.pop(connection)
                try:
                    kind, *content = connection.recv()
                except (EOFError, OSError) as error:
                    raise self._death(self._specs[i], self._processes[i]) from error
                if kind == "failed":
                    raise self._failure(self._specs[i], *content)
                answers[i] = content[0]
        return [answers[i] for i in range(len(self._specs))]

    @staticmethod
    def _failure(spec: WalkerSpec, is_ours: bool, description: str, text: str) -> GeomGNNError:
        if is_ours:
            error = GeomGNNError(description)
            error.__cause__ = WalkerTraceback(text)
            return error
        return GeomGNNError(f"Walker {spec.index} failed: {description}. The traceback of its process:\n{text}")

    @staticmethod
    def _death(spec: WalkerSpec, process: BaseProcess) -> GeomGNNError:
        fault = "that the versions of OpenMM and torch do not fit (install both again, in an environment of their own)"
        return GeomGNNError(f"The process of walker {spec.index} {how_it_ended(process, fault, 'starts walkers')}")

    def close(self) -> None:
        """End the walkers. Safe to call twice."""
        if self._torch_threads is not None:
            sys.modules["torch"].set_num_threads(self._torch_threads)
            self._torch_threads = None
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            # a walker in the middle of a block would finish it first, but nothing of it is needed any more
            process.terminate()
            process.join()
        self._connections, self._processes, self._walkers = [], [], []


class WalkerTraceback(Exception):
    """The traceback of a walker's process, as the cause of the error raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _serve(connection: Connection, spec: WalkerSpec, step: int) -> None:
    """The process of one walker: make it, then answer calls until the other end is closed."""
    answer, walker = _answer(_make, spec, step)
    while True:
        try:
            connection.send(answer)
            method, arguments = connection.recv()
        except (EOFError, OSError):
            # the parent is gone, or wants no more
            return
        answer, _ = _answer(getattr(walker, method), *arguments)


def _make(spec: WalkerSpec, step: int) -> Walker:
    walker = Walker(spec, step)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return walker


def _answer(call: Callable[..., Any], *arguments: Any) -> tuple[tuple, Any]:
    """(what to send, the result)."""
    try:
        result = call(*arguments)
    except Exception as error:  # the parent reports it
        ours = isinstance(error, GeomGNNError)
        description = str(error) if ours else f"{type(error).__name__}: {error}"
        return ("failed", ours, description, traceback.format_exc()), None
    return ("done", result.facts if isinstance(result, Walker) else result), result
