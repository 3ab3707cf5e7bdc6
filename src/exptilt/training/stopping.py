"""Stopping a run on request: it finishes the update that it is at, is kept, and only then ends."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether a run was asked to stop, by Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self._asked: int | None = None
        # What is ignored, or none of Python's business, stays as it is.
        self.usual = {
            number: handler
            for number in (signal.SIGINT, signal.SIGTERM)
            if callable(handler := signal.getsignal(number))
        }

    def __bool__(self) -> bool:
        return self._asked is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """A signal came: the first is noted, the second has its usual effect."""
        if self:
            self.usual[signal.Signals(number)](number, frame)
        self._asked = number
        print("exptilt: stopping after this update; the same signal again stops at once", file=sys.stderr)

    def follow(self) -> None:
        """Let the signal that was noted have its usual effect; that of Ctrl-C is KeyboardInterrupt."""
        if self._asked is not None:
            self.usual[signal.Signals(self._asked)](self._asked, None)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note the first Ctrl-C or SIGTERM while this is open. In other threads than the main one none is seen."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    for number in request.usual:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number, handler in request.usual.items():
            signal.signal(number, handler)
