"""What a run will need, before it begins: bytes by arithmetic, seconds by a measured micro-step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from offbook.config import Config, LoraSettings
from offbook.engine import kernels
from offbook.engine.attention import KEPT_SCORES
from offbook.engine.engine import Engine
from offbook.engine.loss import CHUNK_BYTES
from offbook.errors import MemoryPlanError
from offbook.libraries import quiet_transformers
from offbook.models.adapter import attach_adapter
from offbook.models.base import read_config
from offbook.models.load import backbone, head

# Tokens of a micro-batch: more make products more efficient, up to a point. The result of a step
# does not depend on it. On a processor, one of these holds a step of 16 short rows.
MOST_TOKENS = {"cpu": 2048, "cuda": 8192}
FEWEST_TOKENS = 256
# Measured beyond the arithmetic: bytes of PyTorch's buffers where there are no fused kernels, and
# what the allocator cannot use again, as a share of the activations.
BUFFERS = 200_000_000
FRAGMENTS = 0.15
# Memory to leave alone, as a share of what is free.
RESERVE = 0.05
GB = 1e9


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that memory and time depend on.

    Attributes:
        config: the base's configuration.
        parameters: of the base, in all.
        linear: of the linear layers below the head (N in the FLOP count).
        head: of the output head (H).
        adapter: trained parameters (p).
        packed: whether the engine knows the model's attention, and rows go without padding.
    """

    config: PreTrainedConfig
    parameters: int
    linear: int
    head: int
    adapter: int
    packed: bool

    @classmethod
    def of(cls, folder: Path, lora: LoraSettings) -> ModelShape:
        """The sizes of the base in `folder`, read from its `config.json` alone."""
        config = read_config(folder)
        with torch.device("meta"), quiet_transformers():
            base = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            base.requires_grad_(False)
            parameters = sum(p.numel() for p in base.parameters())
            linear = sum(
                module.weight.numel()
                for module in backbone(base).modules()
                if isinstance(module, torch.nn.Linear)
            )
            outputs = sum(p.numel() for p in head(base).parameters())
            model = attach_adapter(base, lora, 0, str(folder))
        adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(config, parameters, linear, outputs, adapter, Engine(model).packed)

    def flops(self, tokens: int, supervised: int) -> float:
        """Multiplications and additions of a training step, attention's scores left out.

        The frozen base costs a forward pass and the gradient of its inputs, 4 a weight; the adapter
        that of its weights too, 6; the head is reached by supervised tokens alone.
        """
        return tokens * (4 * self.linear + 6 * self.adapter) + supervised * 4 * self.head

    def fused(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether the fused kernels compute the model's layers."""
        c = self.config
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return self.packed and kernels.take(
            device, dtype, c.hidden_size, head_dim, c.intermediate_size
        )

    def activation_bytes(
        self, dtype: torch.dtype, device: torch.device, longest: int, dropout: bool
    ) -> tuple[int, int]:
        """Bytes that a token keeps in one layer until the backward pass, and uses in passing.

        The fused kernels keep no masks, no gated inputs and no probabilities of attention.

        Args:
            dtype: of the base.
            device: that computes.
            longest: tokens of the longest row.
            dropout: whether there is any.
        """
        c, fused = self.config, self.fused(dtype, device)
        head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        queries = c.num_attention_heads * head_dim
        keys = (getattr(c, "num_key_value_heads", None) or c.num_attention_heads) * head_dim
        mask = int(dropout and not fused)
        scores = 0 if fused else c.num_attention_heads * longest
        kept = (
            c.hidden_size * (4 + 5 * mask)  # inputs of the norms and of the projections
            + queries * (2 + mask)
            + 2 * keys
            + c.intermediate_size * (2 if fused else 3 + mask)
            + min(scores, KEPT_SCORES)
        )
        passing = 4 * c.intermediate_size + 6 * c.hidden_size
        return kept * dtype.itemsize, passing * dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """How a run is cut to the machine, and what it will need.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch.
        checkpointing: whether activations are recomputed in the backward pass.
        weights, adapter, activations, loss, process: bytes of the base; of adapters, gradients and
            moments; of a micro-batch; of a chunk of logits; of Python and its libraries.
        available: bytes that could be used when the plan was made.
    """

    micro_batch_tokens: int
    checkpointing: bool
    weights: int
    adapter: int
    activations: int
    loss: int
    process: int
    available: int

    @property
    def peak(self) -> int:
        """Bytes at the most."""
        return self.weights + self.adapter + self.activations + self.loss + self.process

    def describe(self) -> str:
        """The plan in a line."""
        how = "with" if self.checkpointing else "without"
        return (
            f"micro-batches of up to {self.micro_batch_tokens:,} tokens {how} gradient "
            f"checkpointing need about {self.peak / GB:.1f} GB ({self.available / GB:.1f} GB free)"
        )


def make_plan(
    config: Config,
    shape: ModelShape,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
    preferred: int | None = None,
) -> Plan:
    """The fastest way to take steps that fits in memory.

    Args:
        config: of the run.
        shape: of its model.
        longest: tokens of the longest example, which is never cut.
        dtype: of the base.
        device: that computes.
        preferred: tokens of a micro-batch to try before all others.

    Raises:
        MemoryPlanError: when nothing fits, with the numbers.
    """
    setting = config.train.gradient_checkpointing
    choices = (False, True) if setting == "auto" else (setting,)
    of_a_step = longest * config.train.batch_size
    sizes = _sizes(min(MOST_TOKENS[device.type], of_a_step), longest)
    plans = [
        plan_for(config, shape, longest, dtype, device, tokens, checkpointing=checkpointing)
        for tokens, checkpointing in (
            *product([preferred] if preferred else [], choices),
            *((tokens, checkpointing) for checkpointing in choices for tokens in sizes),
        )
    ]
    for plan in plans:
        if plan.peak <= plan.available * (1 - RESERVE):
            return plan
    least = min(plans, key=lambda plan: plan.peak)
    raise MemoryPlanError(
        f"training needs {least.peak / GB:.1f} GB at the least: {least.weights / GB:.1f} GB of "
        f"weights, {least.adapter / GB:.1f} GB for the adapter and its optimizer, "
        f"{(least.activations + least.loss) / GB:.1f} GB for a micro-batch of "
        f"{least.micro_batch_tokens} tokens; {least.available / GB:.1f} GB are free",
        fix="choose a smaller base, or lower data.max_length or lora.r",
    )


def plan_for(
    config: Config,
    shape: ModelShape,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    *,
    checkpointing: bool,
) -> Plan:
    """What micro-batches of `tokens` tokens need, whether it fits or not; see `make_plan`."""
    available, process = _memory(device)
    layers, dropout = shape.config.num_hidden_layers, config.lora.lora_dropout > 0
    kept, passing = shape.activation_bytes(dtype, device, longest, dropout)
    # A checkpointed layer keeps its input alone, which lies where the next layer's widest tensor
    # then finds no place; one layer at a time is computed again.
    pinned = (shape.config.hidden_size + shape.config.intermediate_size) * dtype.itemsize
    per_token = (layers * pinned + kept if checkpointing else layers * kept) + passing
    wide = torch.promote_types(dtype, torch.float32).itemsize
    loss = CHUNK_BYTES
    if shape.fused(dtype, device):  # each thread lays out some columns of the head
        columns = torch.get_num_threads() * kernels.PANEL
        loss += columns * shape.config.vocab_size * dtype.itemsize
    else:
        process += BUFFERS
    if not shape.packed or config.train.engine == "plain":
        # transformers and PEFT keep float32 copies of what adapters see, and all logits at once.
        inputs = 6 * shape.config.hidden_size + shape.config.intermediate_size
        per_token += layers * inputs * wide * (1 + dropout)
        loss = tokens * shape.config.vocab_size * (2 * dtype.itemsize + 2 * wide)
    return Plan(
        micro_batch_tokens=tokens,
        checkpointing=checkpointing,
        weights=_weight_bytes(config, shape, dtype),
        adapter=shape.adapter * 16,  # float32: itself, its gradient, two moments
        activations=int(per_token * tokens * (1 + FRAGMENTS)),
        loss=loss,
        process=process,
        available=available,
    )


def _weight_bytes(config: Config, shape: ModelShape, dtype: torch.dtype) -> int:
    if config.model.quantization == "none":
        return shape.parameters * dtype.itemsize
    rest = shape.parameters - shape.linear
    # 4 bits a weight and, with double quantization, 0.127 for the scales (arXiv:2305.14314); one
    # layer's weight at a time is dequantized.
    widest: int = shape.config.hidden_size * shape.config.intermediate_size
    return int(shape.linear * 4.127 / 8) + (rest + 2 * widest) * dtype.itemsize


def _sizes(most: int, longest: int) -> list[int]:
    """Micro-batch sizes to try, largest first: halves, down to a row."""
    least = max(FEWEST_TOKENS, longest)
    sizes = [max(most, least)]
    while sizes[-1] > least:
        sizes.append(max(sizes[-1] // 2, least))
    return sizes


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes this process may use in all, and those it uses already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], 0
    own = psutil.Process().memory_info().rss
    return psutil.virtual_memory().available + own, own
