"""Names of settings that are not ours: what other trainers call them, and what a typo may mean."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

BATCH_ADVICE = (
    "set train.batch_size to the examples each optimizer step sees, over all devices; "
    "how they are split into micro-batches does not change the result"
)
# What other trainers call a setting of ours.
OTHER_NAMES = {
    "model.base": ("base_model", "model_name", "model_name_or_path", "model_path"),
    "model.precision": ("dtype", "torch_dtype"),
    "data.train": ("data_path", "dataset", "datasets", "dataset_name", "train_file"),
    "data.validation": ("eval_dataset", "val_set_size", "val_size", "validation_file"),
    "data.max_length": (
        *("cutoff_len", "max_len", "max_seq_len", "max_seq_length", "model_max_length"),
        *("seq_len", "seq_length", "sequence_len"),
    ),
    "data.system": ("system_prompt",),
    "lora.r": ("lora_r", "lora_rank", "rank"),
    "lora.lora_alpha": ("alpha",),
    "lora.lora_dropout": ("dropout",),
    "lora.target_modules": ("lora_target", "lora_target_modules"),
    "train.num_train_epochs": ("epoch", "epochs", "n_epochs", "num_epochs"),
    "train.batch_size": ("batch",),
    "train.learning_rate": ("lr",),
    "train.lr_scheduler_type": ("lr_scheduler", "scheduler"),
    "train.warmup_ratio": ("warmup",),
    "train.max_grad_norm": ("clip", "grad_clip", "gradient_clipping"),
    "train.max_steps": ("iters", "steps"),
    "output_dir": ("adapter_path", "out_dir", "output", "output_path"),
}
# What to do about their keys for which there is no setting of the same meaning.
FOREIGN_KEYS = {
    "micro_batch_size": BATCH_ADVICE,
    "load_in_4bit": "set model.quantization=nf4",
    "warmup_steps": "set train.warmup_ratio to their share of all steps",
    "per_device_train_batch_size": BATCH_ADVICE,
    "gradient_accumulation_steps": BATCH_ADVICE,
    "fp16": "set model.precision=float16, or bfloat16 where the card has it",
    "bf16": "set model.precision=bfloat16",
    "trust_remote_code": "remove it; offbook never runs code that comes with a model",
}


def suggest_key(path: Sequence[str], valid: Sequence[str]) -> str:
    """For an unknown key: the valid one that is meant, else all of its section."""
    *section, leaf = path
    leaf = leaf.casefold().replace("-", "_")
    sections = dict.fromkeys(key.split(".")[0] for key in valid)
    if not section and leaf in sections:
        return f'did you mean "{leaf}"?'
    same = [key for key in valid if key.split(".")[-1] == leaf]
    same += [key for key, names in OTHER_NAMES.items() if leaf in names]
    if same:
        return f'did you mean "{same[0]}"?'
    prefix = "".join(f"{name}." for name in section)
    here = list(
        dict.fromkeys(k.removeprefix(prefix).split(".")[0] for k in valid if k.startswith(prefix))
    )
    if near := difflib.get_close_matches(leaf, here, n=1):
        return f'did you mean "{prefix}{near[0]}"?'
    leaves = {key.split(".")[-1]: key for key in valid}
    if near := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75):
        return f'did you mean "{leaves[near[0]]}"?'
    if not here:  # a section that does not exist
        prefix, here = "", list(sections)
    return f"valid keys here: {', '.join(prefix + name for name in here)}"
