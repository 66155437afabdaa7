"""Kernels on threads of their own compute what they do on PyTorch's threads, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from offbook.engine.engine import Engine
from offbook.engine.ops import kernels
from offbook.engine.ops.kernels import Dropout
from offbook.engine.ops.library import library
from offbook.engine.ops.threads import own_threads, threads
from support.engines import CPU, FAMILIES, make_model, some_examples

pytestmark = pytest.mark.skipif(library().code is None, reason=f"no kernels: {library().problem}")


@pytest.fixture
def with_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compute(rows: int = 300) -> list[torch.Tensor]:
    """The results of every kernel."""
    dropout = Dropout(2**63 + 5, 9000)
    x, dy, a, b = random(rows, 96), random(rows, 64, seed=1), random(8, 96), random(8, 64)
    weight = random(64, 96, seed=2)
    h = kernels.lora_a(x, a, dropout)
    y = kernels.multiply([kernels.Product(x, weight, h, b, dropout)])
    kernels.lora_b_(y, h, b, dropout)
    heads = random(rows, 4, 32, seed=3), random(rows, 2, 32, seed=4), random(rows, 2, 32, seed=5)
    past = random(9, 2, 32, seed=6), random(9, 2, 32, seed=7)
    facts = past, [rows // 3, 1, rows - rows // 3 - 1], 0.2, None
    logits = y.clone()
    normed, scale = kernels.rms_norm(x, a[0], 1e-5)
    return [
        *(y, logits, kernels.cross_entropy_(logits, torch.arange(rows) % 64)),
        *kernels.lora_backward(x, dy, b, h, dropout),
        kernels.attend(*heads, *facts),
        *kernels.attend_backward(random(rows, 4, 32, seed=8), *heads, *facts),
        *(normed, scale, kernels.rms_norm_backward(x, normed, a[0], scale)),
        *(kernels.swiglu(x, normed), *kernels.swiglu_backward(x, normed, x)),
        kernels.rotate(heads[0], random(rows, 32), random(rows, 32, seed=9)),
    ]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(some, others, strict=True))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("rows", [3, 300])
def test_results_are_the_same_bits(
    count: int, rows: int, with_threads: Callable[[int], None]
) -> None:
    """Also with more threads than cores, which the system stops in the middle of their work."""
    with_threads(count)
    expected = compute(rows)
    for _ in range(20):
        with own_threads():
            assert threads() == count
            assert torch.get_num_threads() == 1
            assert equal(compute(rows), expected)
    assert torch.get_num_threads() == threads() == count


def test_two_callers_at_a_time(with_threads: Callable[[int], None]) -> None:
    with_threads(3)
    expected, right = compute(), []
    with own_threads():
        callers = [
            threading.Thread(
                target=lambda: right.extend(equal(compute(), expected) for _ in "12345")
            )
            for _ in range(3)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert right == [True] * 15


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(with_threads: Callable[[int], None]) -> None:
    with_threads(3)
    expected = compute()
    with own_threads():
        compute()
        child = os.fork()
        if not child:
            os._exit(0 if equal(compute(), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert equal(compute(), expected)


KEPT = """
import os, torch
from offbook.engine.ops import kernels
from offbook.engine.ops.threads import own_threads
cores = os.sched_getaffinity(0)
torch.set_num_threads(len(cores) + {more})
with own_threads():
    kernels.rms_norm(torch.ones(5000, 512), torch.ones(512), 1e-5)
    kept = [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]
print(sorted(core for some in kept if len(some) == 1 for core in some) == sorted(cores))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("more", [0, 1])
def test_threads_have_a_core_each_where_there_are_as_many(more: int) -> None:
    command = [sys.executable, "-c", KEPT.format(more=more)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == str(not more)


def test_an_engine_of_kernels_computes_its_steps_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one whose layers PyTorch computes leaves PyTorch its threads."""
    before = torch.get_num_threads()
    seen: list[int] = []
    loss = Engine.loss
    monkeypatch.setattr(
        Engine, "loss", lambda *a: (seen.append(torch.get_num_threads()), loss(*a))[1]
    )
    wide = FAMILIES["llama-mha"].to_dict() | {
        **{"hidden_size": 128, "intermediate_size": 96, "vocab_size": 128, "head_dim": 32}
    }
    for config in (type(FAMILIES["llama-mha"])(**wide), FAMILIES["llama-mha"]):
        engine = Engine(make_model(config, torch.float32))
        step = engine.make_step(some_examples(0), 10**6, CPU)
        assert engine.accumulate(step, [0]) is not None
        assert engine.mean_loss(step) is not None
    assert seen == [1, 1, before, before]
