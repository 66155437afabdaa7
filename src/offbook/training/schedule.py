"""Which examples an optimizer step sees, and its learning rate.

Both are functions of the settings and the step alone, so no position is saved: a resumed run asks
for the next step and gets the same examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offbook.errors import ConfigError
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings, TrainSettings

# Measured: with 60 rows of the sample role and the default settings, SmolLM2-135M has its voice
# after these steps.
STEPS_FOR_A_VOICE = 12
MIXED = 2**31  # added to a pass over general rows, so that its order is not that of an epoch
FEWEST_STEPS = 5  # of a run that is compared with others before its end


@dataclass(frozen=True)
class Schedule:
    """The examples of every optimizer step.

    Attributes:
        examples: how many there are.
        batch_size: examples per step, without general ones that are mixed in; the last step of an
            epoch has fewer where they do not divide.
        seed: of the order, which differs in each epoch.
    """

    examples: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, examples: int, config: Config) -> Schedule:
        """The schedule of a run with so many training examples."""
        return cls(examples, config.train.batch_size - config.mixed_per_step, config.train.seed)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    def total_steps(self, settings: TrainSettings) -> int:
        """Optimizer steps in all."""
        if settings.max_steps is not None:
            return settings.max_steps
        return max(math.ceil(settings.num_train_epochs * self.steps_per_epoch), 1)

    def steps_of_share(self, settings: TrainSettings, share: float) -> int:
        """The steps that are a share of all, but not very few."""
        total = self.total_steps(settings)
        return min(max(math.ceil(share * total), FEWEST_STEPS), total)

    def rows(self, step: int) -> NDArray[np.int64]:
        """int64 indices of the examples of the next step after `step` completed ones."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.batch_size
        return _order(self.examples, self.seed, epoch)[start : start + self.batch_size]


def mixed_rows(step: int, examples: int, config: Config) -> list[int]:
    """Indices of the general examples of the next step after `step` completed ones.

    All are taken in turn, in another order in each pass.

    Args:
        step: completed steps.
        examples: how many general ones there are.
        config: of the run.
    """
    count = config.mixed_per_step
    places = [divmod(place, examples) for place in range(step * count, (step + 1) * count)]
    return [int(_order(examples, config.train.seed, MIXED + a_pass)[at]) for a_pass, at in places]


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def check_patience(validation: int, settings: TrainSettings) -> None:
    """Refuse `patience` where there is nothing to wait for.

    Args:
        validation: examples that are held out.
        settings: of the run.

    Raises:
        ConfigError: when there are none.
    """
    if settings.patience is not None and not validation:
        raise ConfigError(
            "does nothing, since no rows are held out to validate on",
            where="train.patience",
            fix="leave it out, or set data.validation",
        )


def check_warmup(schedule: Schedule, settings: TrainSettings) -> str | None:
    """What is odd about a run whose steps are all warm-up; None where some are not.

    Raises:
        ConfigError: when every learning rate is 0, so that nothing would be learned.
    """
    total = schedule.total_steps(settings)
    if warmup_steps(total, settings) < total:
        return None
    if total == 1:
        raise ConfigError(
            "the learning rate of the only step would be 0, because it is a warm-up step",
            where="train.warmup_ratio",
            fix="set train.warmup_ratio=0, or train for more steps",
        )
    highest = learning_rate_at(total - 1, total, settings)
    return (
        f"all {total:,} steps are warm-up: the learning rate reaches {highest:.3g} in the last "
        f"one, and never {settings.learning_rate:g}; lower train.warmup_ratio, to 0.03 for example"
    )


def describe_change(
    schedule: Schedule, done: int, before: TrainSettings, now: TrainSettings
) -> str | None:
    """How other settings change a run that has taken `done` steps; None if not in its length.

    Raises:
        ConfigError: when it would be shorter than it is already.
    """
    old, new = schedule.total_steps(before), schedule.total_steps(now)
    if new == old:
        return None
    if new < done:
        key = "num_train_epochs" if now.max_steps is None else "max_steps"
        raise ConfigError(
            f"{getattr(now, key):g} means {new:,} steps, and the run has taken {done:,}",
            where=f"train.{key}",
            fix="leave it out to continue, or train a new run with another output_dir",
        )
    if new == done:
        return f"the run ends after {new:,} steps instead of {old:,}, which it has taken"
    told = f"the run has {new:,} steps instead of {old:,}: the learning rate "
    if done:
        told += f"was {learning_rate_at(done - 1, old, before):.3g} in step {done:,}, "
    told += f"is {learning_rate_at(done, new, now):.3g} in step {done + 1:,}"
    return f"{told}, and {learning_rate_at(new - 1, new, now):.3g} in the last one"


def check_steps(schedule: Schedule, settings: TrainSettings) -> str | None:
    """What to do about few steps; None where they are enough, or `max_steps` was chosen."""
    total = schedule.total_steps(settings)
    if settings.max_steps is not None or total >= STEPS_FOR_A_VOICE:
        return None
    epochs = math.ceil(STEPS_FOR_A_VOICE / schedule.steps_per_epoch)
    return (
        f"{total} steps are few to learn a role in; train.num_train_epochs={epochs} makes "
        f"{epochs * schedule.steps_per_epoch}"
    )


def fitting_rate(width: int, family: str, lora: LoraSettings) -> float:
    """The learning rate that fits a base's width: what `train.learning_rate: auto` means.

    The rule is that of Schulman and others, "LoRA Without Regret" (2025), and of `get_lr` in their
    tinker-cookbook. Its exponents were fitted to the best rates of Llama and Qwen models. Adapters
    begin there as PEFT's do, and are scaled by 32 / r, with which the best rate does not depend on
    r. At another scale, the rate is the one with which the first updates change the model as much.

    Args:
        width: hidden size.
        family: the `model_type` of the base.
        lora: of the run.
    """
    exponent = 0.0775 if family.startswith("qwen") else 0.781
    scale = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    rate = 5e-4 * (2000 / width) ** exponent * (32 / lora.r) / scale
    return float(f"{rate:.1e}")


def warmup_steps(total: int, settings: TrainSettings) -> int:
    """The first of `total` steps, in which the learning rate rises."""
    if settings.warmup_ratio == "auto":
        return min(total // 10, 10)
    return math.ceil(settings.warmup_ratio * total)


def learning_rate_at(step: int, total: int, settings: TrainSettings) -> float:
    """The learning rate of the next step after `step` of `total`, as in transformers' schedules.

    Those begin a warm-up with a step at a rate of 0. `warmup_ratio: auto` does not, since a short
    run would lose it. `settings.learning_rate` is a number here; see `fitting_rate`.
    """
    peak, warmup = settings.learning_rate, warmup_steps(total, settings)
    assert peak != "auto"
    if step < warmup:
        first = settings.warmup_ratio == "auto"
        return peak * (step + first) / (warmup + first)
    if settings.lr_scheduler_type == "constant":
        return peak
    done = (step - warmup) / max(total - warmup, 1)
    if settings.lr_scheduler_type == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak * (1 - done)
