"""What makes a run need less memory, each with the bytes that it saves, computed by the planner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from offbook.settings.config import Config

if TYPE_CHECKING:
    from offbook.training.memory import Memory
    from offbook.training.plan import ModelShape

GB = 1e9
SHORTEST = 256  # tokens; shorter examples save nothing, since micro-batches are not smaller
NOTEWORTHY = 0.01  # share of the memory that is saved at the least


@dataclass(frozen=True)
class Case:
    """A run, as far as its memory depends on it.

    Attributes:
        config: its settings.
        shape: of its model.
        longest: tokens of its longest example.
        dtype: of its base.
        device: that computes.
        memory: of the device.
        whole: whether its rows have to stay as long as they are.
        rows: of a step, with those of the runs that are trained together; by default, its own.
        shards: processes that share the base; 1 where each has the whole.
    """

    config: Config
    shape: ModelShape
    longest: int
    dtype: torch.dtype
    device: torch.device
    memory: Memory
    whole: bool = False
    rows: int | None = None
    shards: int = 1

    def changed(self, setting: str) -> Case:
        """The same run with another setting, `key=value`."""
        key, _, value = setting.partition("=")
        case = replace(self, config=self.config.override(setting))
        if key == "model.precision":
            return replace(case, dtype=torch.bfloat16)
        if key == "data.max_length":
            return replace(case, longest=int(value))
        if key == "lora.r":
            adapter = self.shape.adapter * int(value) // self.config.lora.r
            return replace(case, shape=replace(self.shape, adapter=adapter))
        return case


@dataclass(frozen=True)
class Advice:
    """A setting that makes a run need less memory.

    Attributes:
        setting: as it is given on the command line.
        saves: bytes.
    """

    setting: str
    saves: int

    def __str__(self) -> str:
        text = f"{self.setting} needs {size(self.saves)} less"
        if self.setting.endswith("nf4") and find_spec("bitsandbytes") is None:
            text += " (after `pip install 'offbook[nf4]'`)"
        return text


def advise(case: Case, least: Callable[[Case], int]) -> list[Advice]:
    """The settings that help, each by itself, the one that saves most first.

    Args:
        case: the run that does not fit.
        least: the fewest bytes that a run can do with.
    """
    now = least(case)
    found = [Advice(setting, now - least(case.changed(setting))) for setting in _settings(case)]
    helpful = [advice for advice in found if advice.saves >= NOTEWORTHY * now]
    return sorted(helpful, key=lambda advice: -advice.saves)


def describe(case: Case, least: Callable[[Case], int]) -> str:
    """The advice as a sentence: what each setting saves, and how many of them are enough.

    Args:
        case: the run that does not fit.
        least: the fewest bytes that a run can do with.
    """
    advice = advise(case, least)
    parts = [", ".join(map(str, advice))] if advice else []
    together, chosen = case, []
    for piece in advice:
        together = together.changed(piece.setting)
        chosen.append(piece.setting)
        if (need := least(together)) <= case.memory.usable:
            parts.append(f"it fits with {' '.join(chosen)} ({size(need)})")
            break
    else:
        if len(chosen) > 1:
            parts.append(f"all of them together still need {size(least(together))}")
        parts.append("choose a smaller base")
    return "; ".join(parts)


def size(count: int) -> str:
    """Bytes as a text: `1.5 GB`, or `15 MB` where it is little."""
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / 1e6:.0f} MB"


def _settings(case: Case) -> Iterator[str]:
    config = case.config
    if case.dtype.itemsize > torch.bfloat16.itemsize:
        yield "model.precision=bfloat16"
    if config.model.quantization == "none":
        yield "model.quantization=nf4"
    cards = torch.cuda.device_count()
    if case.device.type == "cuda" and config.model.device in ("auto", "cuda") and cards > 1:
        yield f"model.device={','.join(f'cuda:{k}' for k in range(cards))}"
    if config.train.gradient_checkpointing is False:
        yield "train.gradient_checkpointing=true"
    if config.train.engine == "plain":
        yield "train.engine=fast"
    if config.lora.lora_dropout:
        yield "lora.lora_dropout=0"
    if case.longest > SHORTEST and not case.whole:
        yield f"data.max_length={max(case.longest // 2, SHORTEST)}"
    if config.lora.r > 1 and not config.lora.use_dora:
        yield f"lora.r={config.lora.r // 2}"
