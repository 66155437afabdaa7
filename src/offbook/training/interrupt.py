"""Ctrl-C in a program that calls `train`: the step ends, the run is saved, then it is raised."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class Stopped(Exception):  # noqa: N818  (not an error)
    """`should_stop` returned true; the state is that after the last complete step."""


class Interrupt:
    """Notes the first Ctrl-C while its context lasts; the second raises KeyboardInterrupt at once.

    It does so where Python's own handler is set, in the main thread. A program with a handler of
    its own, as the command line has, stops a run with `should_stop`.

    Attributes:
        arrived: whether there was one.
    """

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self._installed = False
        self.arrived = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.arrived or self._should_stop()

    def __enter__(self) -> Interrupt:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            try:
                signal.signal(signal.SIGINT, self._note)
                self._installed = True
            except ValueError:  # not the main thread, which alone gets signals
                pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.arrived:
            raise KeyboardInterrupt
        self.arrived = True
