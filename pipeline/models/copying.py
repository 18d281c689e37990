"""How long pixels take to the device and through normalisation, told apart from the forward pass without waiting."""

from __future__ import annotations

import threading
import time
from typing import Any


class CopyClock:
    """Seconds of all threads. `mark` a moment before and one after, and `add` them when the device is done anyway.

    On CUDA moments are events of the current stream, and on a CPU those of the clock; on an Apple GPU, too, where so
    only the processor's part is seen.
    """

    def __init__(self, device: str) -> None:
        self._is_cuda = device.startswith("cuda")
        self._seconds = 0.0
        self._lock = threading.Lock()

    def mark(self) -> Any:
        """This moment; on CUDA, that at which the stream has come to here."""
        if not self._is_cuda:
            return time.perf_counter()
        import torch

        new_event: Any = torch.cuda.Event  # untyped, as streams are
        event = new_event(enable_timing=True)
        event.record()
        return event

    def add(self, began: Any, ended: Any) -> None:
        """Count what lies between; on CUDA the device must have come to `ended`."""
        seconds = began.elapsed_time(ended) / 1000 if self._is_cuda else ended - began
        with self._lock:
            self._seconds += seconds

    def take(self) -> float:
        """What was counted since this was last asked for."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds
