"""The sections of a run's settings, with what each setting means.

The docstring under a field is its reference documentation: `offbook settings` and
`docs/settings.md` are generated from it. Its first sentence is the summary.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from offbook.errors import shorten

EMBEDDED_BASE = "smollm2-135m"
# Rows that come with offbook, in `samples/`: two roles, and general questions and answers. What a
# model has forgotten is measured on `general-en` and `general-zh`; `general` has none of these.
SAMPLES = {
    "lighthouse": "lighthouse.jsonl",
    "teahouse-zh": "teahouse-zh.json",
    "general-en": "general-en.jsonl",
    "general-zh": "general-zh.jsonl",
    "general": "general.jsonl",
}
# What can be found in rows; `offbook.doctor.findings` says more of each.
FindingKind = Literal[
    "duplicate",
    "near_duplicate",
    "boilerplate",
    "placeholder",
    "empty_cell",
    "no_answer",
    "garbled",
    "control_text",
    "swapped",
    "personal",
    "conflict",
    "model",
    "empty_prompt",
    "unfinished",
    "length",
    "language",
    "silent_role",
    "dropped",
    "truncated",
    "unknown_language",
    "divided",
    "trimmed",
    "opening",
    "ending",
    "two_languages",
]
# The keys of a row, in all formats together.
ROW_KEYS = ("instruction", "input", "output", "system", "history", "conversations", "messages")


class Section(BaseModel):
    """Base class of all sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class ModelSettings(Section):
    """Which model is trained, and in which number format."""

    base: str = EMBEDDED_BASE
    """The base model. A hub id (`deepseek-ai/deepseek-llm-7b-chat`), a local folder, a `.gguf`
    file, or `smollm2-135m`, which is installed as a Python package and needs no hub."""

    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""

    template: str | None = None
    """The chat template, where the base has none, or one that cannot be trained on. A file with a
    Jinja template, or the name of one that comes with offbook: `chatml`, `deepseek-llm` or
    `vicuna`. It is verified as any other, and the run keeps its text."""

    device: str = "auto"
    """What computes. `auto` takes the first GPU of NVIDIA or AMD, or the processor where there is
    none. `cuda:1` is the second of them, `xpu` is a GPU of Intel, `mps` that of an Apple chip. With
    several names, `cuda:0,cuda:1`, each of the GPUs holds a part of the layers, and they compute
    in turn: for a base that is too large for one."""

    precision: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the frozen base. `auto` measures whether this machine multiplies bfloat16
    (arXiv:1905.12322) faster than float32, and takes bfloat16 where float32 does not fit in memory.
    On NVIDIA cards without bfloat16 (Turing, Volta) it is `float16`, in which the loss is scaled so
    that small gradients are not lost (arXiv:1710.03740). Adapters are always float32."""

    quantization: Literal["none", "nf4"] = "none"
    """Whether the base is held in 4 bits. `nf4` does so with its linear layers (arXiv:2305.14314),
    for machines in whose memory it does not fit otherwise; slower, and needs
    `pip install 'offbook[nf4]'`."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        several = r"cpu(,cpu)*|(?P<kind>cuda|xpu):\d+(,(?P=kind):\d+)+"
        if not re.fullmatch(rf"auto|mps|(cuda|xpu)(:\d+)?|{several}", value):
            raise ValueError("give auto, cpu, cuda, cuda:1, xpu or mps, or several: cuda:0,cuda:1")
        return value


class DataSource(Section):
    """One of several places that rows come from."""

    data: str
    repeat: float = Field(default=1, gt=0, le=1000)


class MixSettings(Section):
    """General rows that are mixed into each step."""

    data: str = "general"
    share: float = Field(default=0.2, gt=0, le=0.9)


class DataSettings(Section):
    """Which rows are trained on, and how they become conversations."""

    train: str | tuple[DataSource, ...] = Field(default="lighthouse", union_mode="left_to_right")
    """The rows to train on. A JSON, JSONL, CSV, TSV, Parquet or XLSX file, which may be packed
    (`.gz`, `.zst`, `.zip`); a folder of them, or a pattern (`rows/*.jsonl`); a hub data set
    (`owner/name` or `owner/name:file`); or a sample role that comes with offbook (`lighthouse`,
    `teahouse-zh`). So do general questions and answers, which belong to no role (`general-en`,
    `general-zh`): what a trained model has forgotten is measured on them. Or a list of these, in
    which `{data: role.jsonl, repeat: 2}` is trained on twice in each epoch, and a `repeat` of 0.5
    takes every other row."""

    mix: MixSettings | None = None
    """General rows to mix in, so that the model forgets less of what it knew, such as
    `{data: general, share: 0.2}`: a fifth of the examples of each optimizer step is taken from
    them, in turn. `general` comes with offbook, 200 rows each in English and Chinese; any other
    data may be given as for `train`. An epoch is a pass over the rows of `train` alone, so it has
    more steps."""

    validation: float | str = Field(default="auto", union_mode="left_to_right")
    """The rows to validate on. A share of the rows of `train` (0 to 0.5), held out by prompt, so
    that no prompt is in both sets; or another file or data set. `auto` is 0.02; where that is less
    than 20 rows, it is the share that gives 20, but at most 0.1. With fewer, an evaluation can tell
    little. 0 turns validation off."""

    max_length: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    """Most tokens of an example. A longer conversation becomes several examples, each with as much
    of what came before as fits. A longer question loses its beginning, a reply never any part;
    such rows are counted and named. `auto` is the length of the longest example, up to the base's
    context and to what fits in memory. Examples are not padded, so long ones cost short ones
    nothing."""

    system: str | None = None
    """System text for conversations that have none of their own."""

    input_separator: str = "\n"
    """The text between `instruction` and `input` when a row has both."""

    columns: dict[str, str] = {}
    """What other rows call the keys of ours, such as `{instruction: q, output: a}`. Rows with
    `prompt` and `completion`, `question` and `answer`, or `query` and `response` need none."""

    ignore_keys: tuple[str, ...] = ()
    """Keys of rows and turns to ignore, such as an `id` column. Any other unknown key that has a
    value is an error."""

    @field_validator("train", mode="before")
    @classmethod
    def _sources(cls, value: object) -> object:
        if value == []:
            raise ValueError("give at least one file")
        if isinstance(value, (list, tuple)):
            return tuple({"data": one} if isinstance(one, str) else one for one in value)
        return value

    @property
    def sources(self) -> dict[str, DataSource]:
        """Where the training rows come from, by the name of the setting: `data.train[0]`, ..."""
        if isinstance(self.train, str):
            return {"data.train": DataSource(data=self.train)}
        return {f"data.train[{number}]": source for number, source in enumerate(self.train)}

    @property
    def repeats(self) -> list[float]:
        """How often the rows of each source are trained on in an epoch."""
        return [source.repeat for source in self.sources.values()]

    @property
    def name(self) -> str:
        """The files to train on, without their folders."""
        return " + ".join(
            f"{Path(one.data).name}{f' x {one.repeat:g}' if one.repeat != 1 else ''}"
            for one in self.sources.values()
        )

    @field_validator("validation")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 <= value <= 0.5:
            raise ValueError("give a share of the rows between 0 and 0.5, or a file")
        return value

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [key for key in value if key not in ROW_KEYS]:
            raise ValueError(f'"{shorten(unknown[0])}" is none of {", ".join(ROW_KEYS)}')
        if len(set(value.values())) < len(value):
            raise ValueError("a column can be one thing only")
        return value

    @field_validator("system", "input_separator")
    @classmethod
    def _encodable(cls, value: str | None) -> str | None:
        if value and any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("half a surrogate pair is not text")
        return value


class DoctorSettings(Section):
    """What `offbook check` finds in the rows, as docs/doctor.md explains. Nothing of it changes a
    training.
    """

    ignore: tuple[FindingKind, ...] = ()
    """Kinds of findings that are not wanted, such as `[model]` where the role is one."""

    fix: Literal["fix", "look"] = "fix"
    """Which findings `--fix` of `offbook check` acts on. `fix` are those that are nearly always
    faults; `look` are also those that a person should look at first: their rows are left out of the
    copy, too, and of several replies to one prompt, all but the first."""

    near_duplicate: float = Field(default=0.8, ge=0.7, le=1)
    """The overlap from which rows are nearly equal. It is the number of 3-grams of characters that
    two texts have in common, divided by that of those that either has; the prompts must reach it,
    and the replies. It is estimated by MinHash (Broder, 1997) and then computed."""

    length_ratio: float = Field(default=20, gt=1)
    """A reply is far longer or shorter than the others when it has so many times the characters of
    the median reply, or so many times fewer."""

    alike_share: float = Field(default=0.2, gt=0, le=1)
    """The share of replies that begin or end with the same words from which this is noted."""

    language_share: float = Field(default=0.9, gt=0.5, le=1)
    """Where so large a share of the replies is in one script, one in another is a finding."""


class LoraSettings(Section):
    """The LoRA adapter (arXiv:2106.09685); the names are those of PEFT."""

    r: int = Field(default=8, ge=1)
    """Rank of the adapter's matrices."""

    lora_alpha: float = Field(default=32, gt=0)
    """Scale of the adapter. Its output is multiplied by `lora_alpha / r`."""

    lora_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that an input of the adapter is set to 0 in training (arXiv:1207.0580)."""

    target_modules: tuple[str, ...] | str = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """The linear layers that get an adapter. A list of names, a regular expression that matches
    full names, or `all-linear` (all but the output head)."""

    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` instead of `lora_alpha / r` (rsLoRA, arXiv:2312.03732)."""

    use_dora: bool = False
    """Learn magnitude and direction of a weight separately (DoRA, arXiv:2402.09353). Its layers are
    computed by PEFT, not by offbook's own code, which is slower; the run says so."""

    loraplus_lr_ratio: float | None = Field(default=None, ge=1)
    """Learning rate of the adapter's matrices B, as a multiple of that of A (LoRA+,
    arXiv:2402.12354, where 16 is advised, with a rate for A below the usual one). `learning_rate`
    is that of A, also where it is `auto`. By default both have the same."""


class TrainSettings(Section):
    """The optimization. The optimizer is AdamW (arXiv:1711.05101) with betas 0.9 and 0.999 and
    epsilon 1e-8, as in `transformers.Trainer`.
    """

    num_train_epochs: float = Field(default=3, gt=0)
    """Passes over the training rows."""

    max_steps: int | None = Field(default=None, ge=1)
    """Number of optimizer steps. Overrides `num_train_epochs`."""

    batch_size: int = Field(default=16, ge=1)
    """Examples per optimizer step, over all devices."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Learning rate after warm-up, the highest of the run. `auto` computes it from the base's width
    (`hidden_size`): `5e-4 * (2000 / width) ** 0.781`, with the exponent 0.0775 for Qwen models, and
    rounded to two digits. This is the rule of "LoRA Without Regret" (Schulman and others, 2025,
    https://thinkingmachines.ai/blog/lora/), whose adapters are scaled by `32 / r`. Where
    `lora_alpha` is not 32, or with rsLoRA, the rate is divided by the scale's ratio to that."""

    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after warm-up. It falls to 0 in a straight line or in half a cosine
    (arXiv:1608.03983), or stays constant."""

    warmup_ratio: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """Share of the steps in which the learning rate rises from 0 (arXiv:1706.02677). `auto` is a
    tenth of them, but at most 10 steps, and begins above 0."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay (arXiv:1711.05101)."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all adapters. Larger ones are scaled down
    (arXiv:1211.5063)."""

    skip_loss_spikes: float | None = Field(default=None, gt=1)
    """Skip an optimizer step whose loss is more than this many times the median of the last 20.
    Skipped steps are logged and reported. By default every step is taken."""

    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass (arXiv:1604.06174). Needs much less memory and
    about 40% more time. `auto` does so when a run would not fit in memory otherwise, or only with
    micro-batches so small that they take longer."""

    engine: Literal["fast", "plain"] = "fast"
    """Which code computes losses and gradients. `fast` uses offbook's own code for the layers it
    supports, without padding, after comparing its gradients with those of transformers and PEFT;
    `plain` uses transformers and PEFT alone."""

    shard_base: bool | Literal["auto"] = "auto"
    """Whether the processes of a training (`--nproc`) share the base (FSDP, arXiv:2304.11277): each
    keeps a part of every layer, and all gather a layer when they compute it. Slower than a whole
    base in each process. `auto` does so only when that would not fit in memory."""

    deterministic: bool = False
    """On a GPU, use only operations that give the same bits each time, which are slower. Without
    it, a run that is resumed or repeated there ends in weights that differ by rounding. On a
    processor, all operations do."""

    logging_steps: int = Field(default=10, ge=1)
    """Optimizer steps between lines in `metrics.jsonl`. With `train.patience`, each
    validation has one, too."""

    eval_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations. By default once per epoch. The model is always validated
    before the first and after the last step."""

    save_steps: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints. The last step is always saved."""

    save_total_limit: int = Field(default=2, ge=1)
    """Number of checkpoints to keep."""

    keep_best: bool = True
    """Also keep the checkpoint with the lowest validation loss, and save one where a validation
    gives the lowest so far. `--checkpoint best` uses it; the result of the run is that of its last
    step."""

    patience: int | None = Field(default=None, ge=1)
    """End the run after so many validations in a row without a new lowest loss. By default it takes
    all its steps."""

    init_adapter: str | None = None
    """An adapter to go on from, instead of a new one: a run or an adapter folder on the same base
    and with the same `lora` settings. The receipt of the run says which it was, and what that
    one was trained on. A training says how many of its held-out prompts that run was trained on."""

    report_to: Literal["none", "tensorboard"] = "none"
    """Also write the metrics for TensorBoard (`pip install 'offbook[tensorboard]'`)."""

    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seed of adapters, data order, dropout and the validation split."""
