"""Several processes that train one adapter: how they divide a step, add up, and agree.

Every process knows the whole step and computes a share of its examples. One all-reduce a step adds
up the gradients, the loss, and whether a process was stopped or has failed; what follows, such as
clipping and the update, every process computes from the sums. The first process alone reads and
writes the run directory, and tells the others what it decides. What is told is JSON: nothing that
comes from a network is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from offbook import errors
from offbook.errors import OffbookError, PeerLostError
from offbook.training.interrupt import Stopped

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run; one alone by default.

    Attributes:
        rank: of this one; the first, 0, leads.
        size: how many there are.
        restarted: whether torchrun has started them again after a failure.
    """

    rank: int = 0
    size: int = 1
    restarted: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that reads and writes the run directory."""
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> list[int]:
        """The examples that this process computes: longest first, to whoever has the fewest tokens.

        Args:
            lengths: tokens of each example of the step.

        Returns:
            Indices, in order. The same in every process that asks for the same rank.
        """
        tokens, mine = [0] * self.size, []
        for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
            rank = tokens.index(min(tokens))
            tokens[rank] += lengths[index]
            if rank == self.rank:
                mine.append(index)
        return sorted(mine)

    def add_up(
        self,
        weights: Sequence[torch.Tensor],
        count: int,
        compute: Callable[[], Sequence[float]],
        collective: bool = False,
    ) -> list[float]:
        """Compute numbers and gradients in every process, and add them up over all.

        Args:
            weights: whose gradients are added up.
            count: of the numbers.
            compute: returns numbers, and adds gradients to the weights.
            collective: whether the processes exchange something while they compute. Then one that
                fails cannot tell the others, who are waiting for it: it raises its error at once,
                and they have lost a peer when it ends.

        Returns:
            The sums of the numbers.

        Raises:
            Stopped: in every process, when one was stopped.
            OffbookError: in every process, when one has failed.
            PeerLostError: when one has gone.
        """
        if self.size == 1:
            return list(compute())
        numbers: Sequence[float] = [0.0] * count
        stopped, error = False, None
        try:
            with exchanging() if collective else nullcontext():
                numbers = compute()
        except Stopped:
            stopped = True
        except Exception as caught:
            if collective:
                raise
            error = caught
        sums = self._all_reduce(weights, [float(stopped), float(error is not None), *numbers])
        if sums[1]:
            self.agree(error)
        if sums[0]:
            raise Stopped
        return sums[2:]

    def first(self, action: Callable[[], T]) -> T:
        """Do something in the first process alone; all get its result, which JSON must hold.

        Raises:
            OffbookError: in every process, when it fails.
        """
        if self.size == 1:
            return action()
        told: dict[str, Any] = {}
        error = None
        if self.leads:
            try:
                told["result"] = action()
            except Exception as caught:  # noqa: BLE001  # raised below, when it is told
                error, told["error"] = caught, _as_json(caught)
        heard = json.loads(self._broadcast(json.dumps(told).encode()))
        if error is not None:
            raise error
        if "error" in heard:
            raise _from_json(heard["error"])
        result: T = told["result"] if self.leads else heard["result"]
        return result

    def each(self, action: Callable[[], T]) -> T:
        """Do something in every process; when it fails in one, all raise that error."""
        if self.size == 1:
            return action()
        result, error = None, None
        try:
            result = action()
        except Exception as caught:  # noqa: BLE001  # `agree` raises it
            error = caught
        self.agree(error)
        return result  # type: ignore[return-value]

    def agree(self, error: Exception | None) -> None:
        """Raise the first error of any process in all of them."""
        told = self.gather(None if error is None else _as_json(error))
        for rank, text in enumerate(told):
            if text is not None and rank == self.rank:
                assert error is not None
                raise error  # with its traceback
            if text is not None:
                raise _from_json(text, f" (in process {rank} of {self.size})")

    def gather(self, value: Any) -> list[Any]:
        """What every process says, as JSON holds it."""
        if self.size == 1:
            return [value]
        text = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        _exchange(dist.all_gather, sizes, torch.tensor([len(text)]))
        room = max(int(size) for size in sizes)
        texts = [torch.zeros(room, dtype=torch.uint8) for _ in range(self.size)]
        _exchange(dist.all_gather, texts, _to_tensor(text.ljust(room)))
        return [json.loads(text.numpy().tobytes()) for text in texts]

    def spread(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give all processes the first one's tensors, in place."""
        for tensor in tensors if self.size > 1 else ():
            _exchange(dist.broadcast, tensor.detach(), 0)

    def make_equal(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Give all processes the first one's tensors where they differ; whether they were equal.

        Unlike processors may round a sum or a root in other ways.
        """
        if self.size == 1:
            return True
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        equal = len(set(self.gather(digest.hexdigest()))) == 1
        if not equal:
            self.spread(tensors)
        return equal

    def _all_reduce(self, weights: Sequence[torch.Tensor], numbers: list[float]) -> list[float]:
        """Sums of gradients, in place, and of numbers: one exchange."""
        counts = [p.numel() for p in weights]
        device = weights[0].device if weights else torch.device("cpu")
        flat = torch.zeros(sum(counts) + len(numbers), device=device)
        *parts, last = flat.split([*counts, len(numbers)])
        for p, part in zip(weights, parts, strict=True):
            if p.grad is not None:
                part.copy_(p.grad.flatten())
        last.copy_(torch.tensor(numbers))
        _exchange(dist.all_reduce, flat)
        for p, part in zip(weights, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)
        sums: list[float] = last.tolist()
        return sums

    def _broadcast(self, text: bytes) -> bytes:
        size = torch.tensor([len(text)])
        _exchange(dist.broadcast, size, 0)
        message = _to_tensor(text) if self.leads else torch.zeros(int(size), dtype=torch.uint8)
        _exchange(dist.broadcast, message, 0)
        return message.numpy().tobytes()


ALONE = Processes()


def _exchange(collective: Callable[..., Any], *arguments: Any) -> None:
    try:
        collective(*arguments)
    except RuntimeError as error:  # with gloo at once; with NCCL when its watchdog gives up
        raise _peer_lost() from error


@contextmanager
def exchanging() -> Iterator[None]:
    """Tell that another process has gone from other errors of what processes compute together."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):  # which has no type for it
            raise _peer_lost() from error
        raise


def _peer_lost() -> PeerLostError:
    return PeerLostError(
        "another process of the training has gone",
        fix="see what it wrote last, and continue with --resume",
    )


def _to_tensor(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _as_json(error: Exception) -> list[str | None]:
    """The nearest class of `errors.py`, and the parts of the message."""
    if not isinstance(error, OffbookError):
        return [OffbookError.__name__, f"{type(error).__name__}: {error}", None, None]
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    return [next(kinds), error.what, error.where, error.fix]


def _from_json(told: list[Any], source: str = "") -> OffbookError:
    kind, what, where, fix = told
    error: OffbookError = getattr(errors, kind)(f"{what}{source}", where=where, fix=fix)
    return error
