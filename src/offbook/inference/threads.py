"""How many threads compute a token: as many as is faster at the moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

TRIES = 2  # tokens with all threads, and as many with one
EVERY = 32  # tokens


class FasterThreads:
    """Chooses between all threads and one: of every 32 tokens, each is tried with two.

    A token is a thousand small operations, and after each of them all threads wait for each other.
    Where another program has taken a core, two threads need twice as long as one. The result is
    the same to rounding: PyTorch divides the keys of attention among the threads. So a reply with
    a seed, which is to be the same each time, has all threads.
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._tokens = 0
        self._seconds = {self._all: 0.0, 1: 0.0}

    @contextmanager
    def token(self, number: int) -> Iterator[None]:
        """Compute the token of this number, of one reply or of several, within this context.

        The first, number 0, has all threads: with it the prompt is computed, in large products.
        """
        if not number:
            yield
            return
        place = self._tokens % EVERY
        self._tokens += 1
        if place == 0:
            self._seconds = dict.fromkeys(self._seconds, 0.0)
        tried = place < 2 * TRIES
        fastest = min(self._seconds, key=self._seconds.__getitem__)
        threads = fastest if not tried else self._all if place < TRIES else 1
        torch.set_num_threads(threads)
        start = time.perf_counter()
        try:
            yield
        finally:
            torch.set_num_threads(self._all)
        if tried:
            self._seconds[threads] += time.perf_counter() - start
