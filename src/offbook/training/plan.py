"""How much memory a run will need, by arithmetic, and the micro-batches that fit."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedConfig

from offbook.engine import layers, loss
from offbook.engine.engine import Engine
from offbook.engine.memory import ByDevice
from offbook.engine.ops import Backend, choose
from offbook.engine.ops.torch import Torch
from offbook.errors import MemoryPlanError
from offbook.models.adapter import attach_adapter, require_loadable
from offbook.models.base import head_shape, read_config
from offbook.models.load import backbone, head
from offbook.models.pipeline import BYTES_IN_4_BITS, layers_by_device
from offbook.models.skeleton import make_skeleton
from offbook.models.targets import layers_left_out
from offbook.settings.sections import LoraSettings
from offbook.training.advice import Case, describe
from offbook.training.memory import RESERVE

# Most tokens of a micro-batch: up to a point, more tokens make matrix products more efficient. The
# result of a step does not depend on it. On a processor, this holds a step of 16 short examples.
MOST_TOKENS = ByDevice(cpu=2048, gpu=8192)
FEWEST_TOKENS = 256
# What a micro-batch takes beside its arithmetic, reading weights and launching kernels, in tokens.
# An H200 took 3,500 (docs/gpu.md); a card of a third of its speed does a third of them meanwhile.
EXTRA_TOKENS = ByDevice(cpu=32, gpu=1000)
AGAIN = 1.4  # time of a step that computes activations again; measured, see docs/performance.md
# Measured, beyond the arithmetic: bytes of PyTorch's buffers where it computes the layers, and what
# the allocator cannot use again, as a share of the activations.
BUFFERS = ByDevice(cpu=200_000_000, gpu=40_000_000)
FRAGMENTS = ByDevice(cpu=0.15, gpu=0.05)
BYTES_OF_A_WEIGHT = 16  # of an adapter, in float32: itself, its gradient, two moments
GB = 1e9


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that memory and time depend on.

    Attributes:
        config: the base's configuration.
        parameters: of the base, in all.
        linear: parameters of the linear layers below the head.
        head: parameters of the output head.
        adapter: trained parameters.
        packed: whether the engine computes sequences without padding.
        notes: what a user should know about layers without an adapter.
    """

    config: PreTrainedConfig
    parameters: int
    linear: int
    head: int
    adapter: int
    packed: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, lora: LoraSettings) -> ModelShape:
        """The sizes of the base in `folder`, read from its `config.json` alone."""
        config = read_config(folder)
        if not hasattr(config, "intermediate_size"):  # GPT-J: four times the width, if not set
            config.intermediate_size = getattr(config, "n_inner", None) or 4 * config.hidden_size
        base = make_skeleton(config).requires_grad_(False)
        parameters = sum(p.numel() for p in base.parameters())
        linear = sum(
            module.weight.numel()
            for module in backbone(base).modules()
            if isinstance(module, torch.nn.Linear)
        )
        outputs = sum(p.numel() for p in head(base).parameters())
        notes = tuple(layers_left_out(base))
        with torch.device("meta"):
            model = attach_adapter(base, lora, 0, str(folder))
        require_loadable(model)
        adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(config, parameters, linear, outputs, adapter, Engine(model).packed, notes)

    def flops(self, tokens: int, supervised: int) -> float:
        """Multiplications and additions of a training step, without attention's scores.

        For each token, a frozen weight takes 4: 2 forward, and 2 for the gradient of its input. A
        weight of the adapter takes 6, for it has a gradient itself. Only supervised tokens reach
        the head.
        """
        return tokens * (4 * self.linear + 6 * self.adapter) + supervised * 4 * self.head

    def backend(self, dtype: torch.dtype, device: torch.device) -> Backend:
        """The backend that computes the model's layers."""
        if not self.packed:
            return Torch()
        channels = head_shape(self.config)[2]
        widths = self.config.hidden_size, channels, self.config.intermediate_size
        return choose(device, dtype, widths)


class OnDevice(NamedTuple):
    """What one of several devices gets.

    Attributes:
        device: its name.
        layers: of the decoder.
        peak: most bytes in use at a time.
    """

    device: str
    layers: int
    peak: int


@dataclass(frozen=True)
class Plan:
    """The size of micro-batches, and the memory that they need.

    Of several devices, bytes are those of the one that needs most.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch.
        checkpointing: whether activations are computed again in the backward pass.
        weights: bytes of the base.
        adapter: bytes of adapters, their gradients and the optimizer's moments.
        activations: bytes of a micro-batch.
        loss: bytes of a chunk of logits.
        process: bytes of Python and its libraries.
        available: bytes that the process could use in all when the plan was made.
        devices: what each one gets, where there are several.
    """

    micro_batch_tokens: int
    checkpointing: bool
    weights: int
    adapter: int
    activations: int
    loss: int
    process: int
    available: int
    devices: tuple[OnDevice, ...] = ()

    @property
    def peak(self) -> int:
        """Most bytes in use at a time."""
        return self.weights + self.adapter + self.activations + self.loss + self.process

    def describe(self) -> str:
        """The plan, in one line."""
        how = "with" if self.checkpointing else "without"
        each = [f"{s.peak / GB:.1f} GB on {s.device} ({s.layers} layers)" for s in self.devices]
        return (
            f"micro-batches of up to {self.micro_batch_tokens:,} tokens {how} gradient "
            f"checkpointing need about {', '.join(each) or f'{self.peak / GB:.1f} GB'} "
            f"({self.available / GB:.1f} GB free)"
        )


def make_plan(case: Case, preferred: int | None = None) -> Plan:
    """The plan with the fastest steps that fits in memory.

    Args:
        case: the run; its longest example is never cut.
        preferred: tokens of a micro-batch to try first.

    Raises:
        MemoryPlanError: when nothing fits, with the numbers.
    """
    plans = _plans(case, preferred)
    for plan in plans:
        if plan.peak <= case.memory.usable:
            return plan
    least = min(plans, key=lambda plan: plan.peak)
    where = "on a device " if least.devices else ""
    raise MemoryPlanError(
        f"training needs {least.peak / GB:.1f} GB {where}at the least: "
        f"{least.weights / GB:.1f} GB of "
        f"weights, {least.adapter / GB:.1f} GB for the adapter and its optimizer, "
        f"{(least.activations + least.loss) / GB:.1f} GB for a micro-batch of "
        f"{least.micro_batch_tokens} tokens; {least.available / GB:.1f} GB are free, and "
        f"{RESERVE:.0%} of them stay free",
        fix=describe(case, least_memory),
    )


def least_memory(case: Case) -> int:
    """The fewest bytes that a run can do with, whether they are there or not."""
    return min(plan.peak for plan in _plans(case))


def _plans(case: Case, preferred: int | None = None) -> list[Plan]:
    """All plans, the one with the fastest steps first; see `make_plan`."""
    setting = case.config.train.gradient_checkpointing
    choices = (False, True) if setting == "auto" else (setting,)
    whole_step = case.longest * (case.rows or case.config.train.batch_size)
    sizes = _sizes(min(int(MOST_TOKENS.on(case.device)), whole_step), case.longest)

    def time_per_token(plan: Plan) -> float:
        extra = EXTRA_TOKENS.on(case.device) / plan.micro_batch_tokens
        return (1 + extra) * (AGAIN if plan.checkpointing else 1)

    def plans(sizes: list[int]) -> list[Plan]:
        found = [plan_for(case, n, checkpointing=again) for n, again in product(sizes, choices)]
        return sorted(found, key=time_per_token)

    return plans([preferred] if preferred else []) + plans(sizes)


def longest_that_fits(case: Case) -> int:
    """The most tokens of an example with which a run fits in memory, up to `case.longest`.

    Raises:
        MemoryPlanError: when not even short examples fit.
    """

    def fits(tokens: int) -> bool:
        return least_memory(replace(case, longest=tokens)) <= case.memory.usable

    if fits(case.longest):
        return case.longest
    least = min(FEWEST_TOKENS, case.longest)
    make_plan(replace(case, longest=least))
    # The shortest that does not fit is the first True here; the one before it fits.
    return least + bisect_left(range(least + 1, case.longest), True, key=lambda n: not fits(n))


def plan_for(case: Case, tokens: int, *, checkpointing: bool) -> Plan:
    """What micro-batches of `tokens` tokens need, whether it fits or not."""
    names = case.config.model.device.split(",")
    linear = _linear_bytes(case) / case.dtype.itemsize
    layers_of = layers_by_device(case.shape.config, linear, len(names))
    plans = [
        _plan_of(
            *(case, tokens, len(own)),
            first=k == 0,
            last=k == len(names) - 1,
            again=checkpointing,
        )
        for k, own in enumerate(layers_of)
    ]
    fullest = max(plans, key=lambda plan: plan.peak)
    if len(names) == 1:
        return fullest
    parts = zip(names, layers_of, plans, strict=True)
    devices = tuple(OnDevice(name, len(own), plan.peak) for name, own, plan in parts)
    return replace(fullest, devices=devices)


def _plan_of(case: Case, tokens: int, depth: int, *, first: bool, last: bool, again: bool) -> Plan:
    """What `plan_for` finds for a device that holds `depth` of the decoder layers.

    Args:
        case: the run.
        tokens: of a micro-batch.
        depth: how many layers the device holds.
        first: whether it holds the embedding.
        last: whether it holds the head, if that is not the embedding.
        again: whether activations are computed again in the backward pass.
    """
    config, shape, dtype = case.config, case.shape, case.dtype
    ops, dropout = shape.backend(dtype, case.device), config.lora.lora_dropout > 0
    hidden, inner = shape.config.hidden_size, shape.config.intermediate_size
    vocabulary, share = shape.config.vocab_size, depth / shape.config.num_hidden_layers
    saved = layers.saved_per_token(ops, shape.config, case.longest, dropout=dropout)
    on_cpu = case.device.type == "cpu"
    one_layer = layers.workspace_per_token(shape.config)
    if again:
        # A checkpointed layer saves only its input. But on a processor this lies where the next
        # layer's widest tensor then does not fit, so both are counted. One layer at a time is
        # computed again.
        kept = depth * (hidden + inner * on_cpu)
        one_layer += saved
    else:
        kept = depth * saved
    per_token = (kept + one_layer) * dtype.itemsize
    has_head = first if shape.config.tie_word_embeddings else last
    if shape.packed and config.train.engine == "fast":
        loss_bytes = loss.workspace_bytes(ops, vocabulary, dtype, case.device, tokens)
        if not on_cpu:  # a GPU's allocator takes for a layer what the loss has freed
            loss_bytes = max(loss_bytes - one_layer * dtype.itemsize * tokens, 0)
    else:
        # transformers and PEFT keep float32 copies of the adapters' inputs, and all logits at once.
        wide = torch.promote_types(dtype, torch.float32).itemsize
        per_token += depth * (6 * hidden + inner) * wide * (1 + dropout)
        loss_bytes = tokens * vocabulary * (2 * dtype.itemsize + 2 * wide)
    weights = _linear_bytes(case) * share
    if in_4_bits(case):  # one weight matrix at a time is dequantized
        weights += 2 * hidden * inner * dtype.itemsize
    own_head = 0 if shape.config.tie_word_embeddings else shape.head
    rest = shape.parameters - shape.linear - own_head
    if case.shards > 1:  # two layers are whole, one of them gathered ahead, or embedding or head
        ends = rest if own_head else 0  # a tied embedding is not shared
        whole = max(2 * shape.linear // shape.config.num_hidden_layers, ends) + rest - ends
        weights = ((shape.linear + own_head + ends) / case.shards + whole) * dtype.itemsize
    else:
        weights += (rest * first + own_head * last) * dtype.itemsize
    return Plan(
        micro_batch_tokens=tokens,
        checkpointing=again,
        weights=int(weights),
        adapter=int(shape.adapter * share) * BYTES_OF_A_WEIGHT,
        activations=int(per_token * tokens * (1 + FRAGMENTS.on(case.device))),
        loss=loss_bytes * has_head,
        process=case.memory.used + int(BUFFERS.on(case.device) * isinstance(ops, Torch)),
        available=case.memory.available,
    )


def in_4_bits(case: Case) -> bool:
    """Whether the base's linear layers are held in 4 bits."""
    stored = getattr(case.shape.config, "quantization_config", None) or {}
    return case.config.model.quantization != "none" or bool(stored.get("load_in_4bit"))


def _linear_bytes(case: Case) -> float:
    """Bytes of the linear layers below the head."""
    return case.shape.linear * (BYTES_IN_4_BITS if in_4_bits(case) else case.dtype.itemsize)


def _sizes(most: int, longest: int) -> list[int]:
    """Micro-batch sizes to try, each half of the one before, down to the longest example."""
    least = max(FEWEST_TOKENS, longest)
    sizes = [max(most, least)]
    while sizes[-1] > least:
        sizes.append(max(sizes[-1] // 2, least))
    return sizes
