"""A run's settings: frozen models, read from YAML and `key=value` overrides.

Every problem in a file is reported at once, each with its key, its line and the nearest valid
key. The docstring under a field is its reference documentation.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from offbook.errors import ConfigError, shorten
from offbook.settings_file import KeyPath, apply_override, origin_of, read_yaml, write_yaml

EMBEDDED_BASE = "smollm2-135m"
SAMPLE_ROLES = {"lighthouse": "lighthouse.jsonl", "teahouse-zh": "teahouse-zh.json"}
PATH_KEYS = ("model.base", "data.train", "data.validation")

# Keys from other trainers whose meaning here is different, not merely misspelt.
BATCH_ADVICE = (
    "set train.batch_size to the examples each optimizer step sees, over all devices; "
    "how they are cut into micro-batches does not change the result"
)
FOREIGN_KEYS = {
    "per_device_train_batch_size": BATCH_ADVICE,
    "gradient_accumulation_steps": BATCH_ADVICE,
    "fp16": "set model.precision=bfloat16 or float32; pure float16 loses small gradients",
    "bf16": "set model.precision=bfloat16",
    "trust_remote_code": "remove it; offbook never runs code that comes with a model",
}


class Section(BaseModel):
    """Base of all sections: immutable, with unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSettings(Section):
    """Which model learns the role, and in which number format."""

    base: str = EMBEDDED_BASE
    """The model that learns: a hub id (`deepseek-ai/deepseek-llm-7b-chat`), a local folder, a
    `.gguf` file, or `smollm2-135m`, which comes from a Python package and needs no hub."""

    revision: str = "main"
    """Branch, tag or commit of a hub id."""

    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number format of the frozen base. `auto` measures whether this processor multiplies bfloat16
    faster than float32. Adapters are float32 always."""

    quantization: Literal["none", "nf4"] = "none"
    """`nf4` keeps the base's linear layers in 4 bits (arXiv:2305.14314), for machines that its
    weights do not fit otherwise; slower (`pip install 'offbook[nf4]'`)."""


class DataSettings(Section):
    """Where the lines are and how they become conversations."""

    train: str = "lighthouse"
    """JSON, JSONL, CSV or Parquet file; a hub data set (`owner/name` or `owner/name:file`); or the
    name of a sample role that comes with offbook (`lighthouse`, `teahouse-zh`)."""

    validation: float | str = Field(default=0.02, union_mode="left_to_right")
    """Share of the rows (0 to 0.5) held out to measure what was learned, split by prompt so that
    no prompt stands on both sides; or a file or data set of its own. 0 holds out nothing."""

    max_length: int = Field(default=384, ge=8)
    """Longest example, in tokens. A longer one loses the oldest part of its prompt, never the end
    of its reply, and is counted."""

    system: str | None = None
    """System text for conversations that bring none of their own."""

    input_separator: str = "\n"
    """What stands between `instruction` and `input` when a row has both."""

    ignore_keys: tuple[str, ...] = ()
    """Row keys to pass over, such as an `id` column. Any other unknown key is an error."""

    @field_validator("validation")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 0.5:
            raise ValueError("give a share of the rows between 0 and 0.5, or a file")
        return value

    @field_validator("system", "input_separator")
    @classmethod
    def _encodable(cls, value: str | None) -> str | None:
        if value and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("half a surrogate pair is no text")
        return value


class LoraSettings(Section):
    """The adapter, in PEFT's own terms (Hu et al., 2021, arXiv:2106.09685)."""

    r: int = Field(default=8, ge=1)
    """Rank of the update."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the update; it is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that an input of the adapter is zeroed during training."""

    target_modules: tuple[str, ...] | str = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Which linear layers get an adapter: a list of names, a regular expression over full names,
    or `all-linear` (all but the output head)."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` instead (arXiv:2312.03732)."""

    use_dora: bool = False
    """Learn magnitude and direction apart (arXiv:2402.09353); slower."""


class TrainSettings(Section):
    """The optimization: AdamW, as `transformers.Trainer` sets it up by default."""

    num_train_epochs: float = Field(default=3, gt=0)
    """Passes over the training rows."""

    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps in all; overrides `num_train_epochs`."""

    batch_size: int = Field(default=16, ge=1)
    """Examples per optimizer step, over all devices."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""

    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after warm-up: down to 0 in a line or half a cosine, or flat."""

    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps over which the learning rate rises from 0."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm over all adapters."""

    skip_loss_spikes: float | None = Field(default=None, gt=1)
    """Skip the optimizer step when the loss is more than so many times the median of the last 20.
    Skipped steps are logged and told. By default every step is taken."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: much less memory, about a third more time.
    `auto` does so only when a run would not fit in memory otherwise."""

    engine: Literal["fast", "plain"] = "fast"
    """`fast` computes the layers it knows with offbook's own code, on rows without padding, after
    comparing gradients with transformers' and PEFT's; `plain` leaves all of it to them."""

    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between lines of `metrics.jsonl`."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations; by default once an epoch. The first and the last step
    are always validated."""

    save_steps: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints. The last step is always saved."""

    save_total_limit: int = Field(default=2, ge=1)
    """Checkpoints to keep."""

    report_to: Literal["none", "tensorboard"] = "none"
    """Also write the metrics for TensorBoard (`pip install 'offbook[tensorboard]'`)."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Fixes adapters, data order, dropout and the validation split."""


class Config(Section):
    """All settings of a run."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    output_dir: str = "runs/offbook"
    """The run directory: settings, metrics, checkpoints and the adapter."""

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
        """Read a YAML file (or the defaults), then apply `section.key=value` overrides.

        Raises:
            ConfigError: with every problem found, a line each.
        """
        values: dict[str, Any] = {}
        origins: dict[KeyPath, str] = {}
        if path is not None:
            values, origins = read_yaml(Path(path))
        for override in overrides:
            apply_override(override, values, origins)
        return cls._validated(values, origins)

    def override(self, *overrides: str) -> Config:
        """A copy with `section.key=value` settings changed."""
        values = self.model_dump()
        origins: dict[KeyPath, str] = {}
        for item in overrides:
            apply_override(item, values, origins)
        return self._validated(values, origins)

    def with_value(self, key: str, value: str) -> Config:
        """A copy with one `section.key` set to text as it is, not as YAML reads it."""
        section, name = key.split(".")
        changed = getattr(self, section).model_copy(update={name: value})
        return self.model_copy(update={section: changed})

    def flat(self) -> dict[str, Any]:
        """Every setting under its dotted key."""
        values = {}
        for key in keys():
            value: Any = self
            for name in key.split("."):
                value = getattr(value, name)
            values[key] = value
        return values

    def with_absolute_paths(self) -> Config:
        """A copy whose local files are found from another working directory too."""
        copy, flat = self, self.flat()
        for key in PATH_KEYS:
            path = local_path(str(flat[key]))
            if path and flat[key] not in (EMBEDDED_BASE, *SAMPLE_ROLES):
                copy = copy.with_value(key, str(path.resolve()))
        return copy

    def to_yaml(self) -> str:
        """The settings as YAML that `load` reads back to an equal Config."""
        return write_yaml(self.model_dump(mode="json"))

    @classmethod
    def _validated(cls, values: dict[str, Any], origins: dict[KeyPath, str]) -> Config:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = dict.fromkeys(_explain(detail, origins) for detail in error.errors())
            raise ConfigError("\n".join(problems)) from None


def local_path(text: str) -> Path | None:
    """The file or folder that a setting names, if there is one."""
    # Where pathlib raises (too long, a NUL, an unknown ~user), os.path says that there is none.
    path = os.path.expanduser(text)  # noqa: PTH111
    return Path(path) if os.path.exists(path) else None  # noqa: PTH110


def keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every settable key in dotted form: `train.learning_rate`, ..., `output_dir`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _explain(detail: ErrorDetails, origins: dict[KeyPath, str]) -> str:
    # Pydantic appends the branch of a union, or an index, to the key: cut back to what was written.
    valid, path = list(keys()), tuple(str(part) for part in detail["loc"])
    while len(path) > 1 and path not in origins and ".".join(path) not in valid:
        path = path[:-1]
    dotted, where = ".".join(path), origin_of(path, origins)
    if detail["type"] == "extra_forbidden":
        fix = FOREIGN_KEYS.get(path[-1]) or _nearest(path, valid)
        return str(ConfigError(f'unknown key "{dotted}"', where=where, fix=fix))
    message = detail["msg"].removeprefix("Value error, ")
    key = f"{dotted}: " if dotted else ""  # none where the key itself is not text
    problem = f"{key}{message[:1].lower()}{message[1:]}, not {shorten(repr(detail['input']))}"
    return str(ConfigError(problem, where=where))


def _nearest(path: KeyPath, valid: list[str]) -> str:
    """A suggestion for an unknown key: the same name in another section, else the most alike."""
    *section, leaf = path
    moved = [key for key in valid if key.split(".")[-1] == leaf]
    if moved:
        return f'did you mean "{moved[0]}"?'
    prefix = "".join(f"{name}." for name in section)
    here = list(
        dict.fromkeys(k.removeprefix(prefix).split(".")[0] for k in valid if k.startswith(prefix))
    )
    near = difflib.get_close_matches(leaf, here, n=1)
    return (
        f'did you mean "{prefix}{near[0]}"?'
        if near
        else f"valid keys here: {', '.join(prefix + name for name in here)}"
    )
