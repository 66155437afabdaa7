"""At the start of every run, compares the fast path with transformers and PEFT.

The engine replaces the layers of a model by its own, packs sequences, shares prefixes and has
backward passes written by hand. Tests check all of that for tiny models in float64. They cannot
know the user's model, library versions, processor and compiler. So before its first step, a run
computes the loss and the gradient of every adapter matrix twice on its own data: with the engine,
and with the original layers on padded sequences. Training starts only if the two agree.

**A gradient is a strong test.** It depends on every operation of the forward and backward pass. A
wrong scale, a mask that is off by one, a missing bias or positions that ignore the prefix change it
by far more than rounding does. The loss is compared too.

**A few short sequences are enough.** A wrong formula is wrong for any input, so examples are cut to
128 tokens in all, and the check takes about as long as one step. Two sequences or more are used,
because one alone cannot show that sequences do not see each other. They share any prefix they have,
even a single token, so that this path is checked as well.

**B gets noise.** A new adapter has B = 0. Then the gradient of A is exactly zero, and half of the
comparison would be between zeros. Matrices that are zero are filled with small random numbers
during the check, and set to zero again afterwards.

**The tolerance is that of the number format.** Two correct computations round differently, and the
difference grows from layer to layer: in bfloat16, correct computations differ by about 0.07 of the
gradient's norm, and by up to 0.22 in a single matrix. The limits below are a few times that. In a
matrix whose gradient is close to zero rounding weighs more, so a single matrix may differ by four
times the limit for all of them. Where attention is saturated, the gradients of its queries and keys
are nothing but rounding; so a norm below a quarter of the usual one counts as a quarter of it.

**Dropout is on.** Both paths draw the same masks, so a wrong mask is found, too.

**What it cannot see.** Errors smaller than rounding: in bfloat16 that hides a scale that is wrong
by a few percent, which the tests in float64 would find. Effects of length, such as a
sliding window that is longer than the sequences. Mistakes that the plain path shares, such as a
wrong label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from subprocess import CalledProcessError

import numpy as np
import torch
from torch import nn

from offbook.engine.batching import Step, make_step
from offbook.engine.engine import Engine, evaluating
from offbook.engine.memory import is_out_of_memory
from offbook.engine.ops.torch import Torch
from offbook.errors import EngineError
from offbook.models.load import head, require_finite_weights
from offbook.tokens.examples import IGNORED, Example

# The largest relative difference of gradients that rounding explains, over all matrices together.
TOLERANCE = {
    torch.bfloat16: 0.3,
    torch.float16: 0.05,
    torch.float32: 1e-3,
    torch.float64: 1e-6,
}
SINGLE_MATRIX = 4  # times the tolerance, for the matrix that differs most
CHECKED_TOKENS = 128
FLOAT16_SCALE = 256.0  # of the loss: so few tokens have large gradients


def check_gradients(engine: Engine, examples: Sequence[Example], device: torch.device) -> float:
    """Compare loss and gradients with those of transformers and PEFT.

    The model is as before afterwards, without gradients.

    Args:
        engine: the engine to check.
        examples: a few short parts of them are used.
        device: that the model is on.

    Returns:
        The relative difference of the gradients, over all adapter matrices.

    Raises:
        EngineError: when it is more than rounding explains.
        NonFiniteError: when the base has a weight that is not finite.
    """
    if engine.is_plain:
        return 0.0
    few = _few(examples)
    # In evaluation mode there is no checkpointing.
    with evaluating(engine.model), _nonzero_adapter(engine.model) as trained:
        for dropout in engine.dropouts:
            dropout.train()
        step = make_step(few, CHECKED_TOKENS, device, packed=engine.packed, min_shared_tokens=1)
        loss, fast = _gradients(engine, step, trained)
        with engine.plain():
            plain = Engine(engine.model, fast=False, min_shared_tokens=1)
            step = plain.make_step(few, CHECKED_TOKENS, device)
            expected_loss, expected = _gradients(plain, step, trained)
    if not math.isfinite(expected_loss):
        require_finite_weights(engine.model, "the base")
    flat, expected_flat = (
        torch.cat([g.flatten().to(device) for g in x.values()]) for x in (fast, expected)
    )
    overall = _difference(flat, expected_flat)
    usual = float(expected_flat.norm()) / math.sqrt(len(trained))
    least = usual / SINGLE_MATRIX
    differences = {name: _difference(fast[name], expected[name], least) for name in trained}
    worst = max(differences, key=lambda name: differences[name])
    tolerance = TOLERANCE[next(head(engine.model).parameters()).dtype]
    within = overall <= tolerance and differences[worst] <= SINGLE_MATRIX * tolerance
    if not within or not math.isclose(loss, expected_loss, rel_tol=tolerance):
        raise EngineError(
            f"the fast path's gradients differ from those of transformers and PEFT by "
            f"{overall:.2g} ({tolerance:g} is rounding), most in {worst} "
            f"({differences[worst]:.2g}); its loss is {loss:.6g}, theirs {expected_loss:.6g}",
            fix="report this model, and train with train.engine=plain",
        )
    return overall


def check_or_fall_back(
    engine: Engine,
    examples: Sequence[Example],
    device: torch.device,
    announce: Callable[[str], None],
) -> None:
    """Check gradients; where our own kernels fail or are wrong, go on with PyTorch's operations.

    On a GPU, kernels are compiled when they are first used, by a compiler that may be missing, for
    a card that may be newer than they are.

    Args:
        engine: the engine to check; it computes with PyTorch's operations afterwards, if need be.
        examples: a few short parts of them are used.
        device: that the model is on.
        announce: receives a line that says so, with the reason.

    Raises:
        EngineError, NonFiniteError: as `check_gradients`, for PyTorch's operations.
    """
    try:
        check_gradients(engine, examples, device)
    except (EngineError, RuntimeError, OSError, CalledProcessError) as error:
        if is_out_of_memory(error):
            raise
        engine.compute_with(Torch())
        check_gradients(engine, examples, device)
        reason = str(error).partition("\n")[0]
        announce(f"computing with PyTorch's operations, which are slower, because {reason}")


def _gradients(
    engine: Engine, step: Step, trained: dict[str, nn.Parameter]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of a step and its gradients, in the modes that the modules are in."""
    engine.model.zero_grad(set_to_none=True)
    loss = engine.forward_backward(step, [0], scale=FLOAT16_SCALE)
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()
    }
    engine.model.zero_grad(set_to_none=True)
    return loss or 0.0, gradients


@contextmanager
def _nonzero_adapter(model: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """The trained parameters; those that are zero get noise while the context lasts."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    zero = [p for p in trained.values() if not p.any()]
    generator = torch.Generator().manual_seed(0)
    try:
        for p in zero:
            noise = torch.randn(p.shape, generator=generator) / p.shape[0]
            p.data.copy_(noise)
        yield trained
    finally:
        for p in zero:
            p.data.zero_()


def _few(examples: Sequence[Example]) -> list[Example]:
    """The shortest examples, two or more if there are, cut to at most `CHECKED_TOKENS` together."""
    few: list[Example] = []
    for example in sorted(examples, key=len):
        part = _part(example, CHECKED_TOKENS // 2)
        if len(few) >= 2 and sum(map(len, few)) + len(part) > CHECKED_TOKENS:
            break
        few.append(part)
    return few


def _part(example: Example, size: int) -> Example:
    """At most `size` tokens of an example, among them its first supervised token."""
    supervised = np.flatnonzero(example.labels[1:] != IGNORED) + 1
    stop = min(max(size, int(supervised[0]) + 1 if len(supervised) else 0), len(example))
    kept = slice(max(stop - size, 0), stop)
    return replace(example, input_ids=example.input_ids[kept], labels=example.labels[kept])


def _difference(got: torch.Tensor, expected: torch.Tensor, least: float = 0.0) -> float:
    """The norm of the difference, relative to the expected norm, or `least`, if not zero."""
    norm = max(float(expected.norm()), least)
    return float((got - expected).norm()) / norm if norm else float(got.norm())
