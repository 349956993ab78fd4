"""Handling of Ctrl-C while walkers run: the current block of steps is finished first."""

import signal
import threading
from typing import Any, Self


class DelayedInterrupt:
    """Records Ctrl-C (`came`) instead of raising it, so that a block can be finished; a second one is raised.

    Only the main thread can do this; in other threads it has no effect.
    """

    def __init__(self) -> None:
        self.came = False
        self._insisted = False
        self._before: Any = None

    def _note(self, number: int, frame: object) -> None:
        if self.came:
            self._insisted = True
            raise KeyboardInterrupt
        self.came = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self._insisted and kind is not KeyboardInterrupt:
            # raised within OpenMM's callback it came back as another error
            raise KeyboardInterrupt from error
