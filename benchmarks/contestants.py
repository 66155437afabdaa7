"""Those who compete in `train_speed.py`: each trains the same adapter on the same rows.

What only some of them need is imported by them alone, since imports count toward peak memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from machine import DEVICE, now

IGNORED = -100
BATCH, ACCUMULATION = 8, 2
STEP = BATCH * ACCUMULATION
MAX_LENGTH = 384  # of a row without its persona
LEARNING_RATE = 1e-4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 32, "target_modules": PROJECTIONS}

Row = dict[str, list[int]]  # input_ids and labels
Steps = tuple[list[float], float]  # the seconds of every step, and their mean loss


@dataclass(frozen=True)
class Job:
    """What every contestant is given; the first steps only warm up."""

    folder: str
    rows: list[Row]
    dropout: float
    precision: str
    kernels: str
    scratch: str

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.precision)
        assert isinstance(dtype, torch.dtype)
        return dtype


def recipe(job: Job, checkpointing: bool) -> Steps:
    """Trainer and PEFT as the tutorials have them."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer, lora = load(job)
    if checkpointing:
        model.enable_input_require_grads()
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(**trainer_settings(job), gradient_checkpointing=checkpointing),
        train_dataset=[row | {"attention_mask": [1] * len(row["labels"])} for row in job.rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )
    return run_trainer(trainer)


def unsloth(job: Job) -> Steps:
    """Unsloth's layers under Trainer, without the checkpointing that it recommends for memory."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        job.folder,
        max_seq_length=max(MAX_LENGTH, *(len(row["labels"]) for row in job.rows)),
        dtype=job.dtype,
        load_in_4bit=False,
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Trainer(
        model=FastLanguageModel.get_peft_model(
            model, lora_dropout=job.dropout, use_gradient_checkpointing=False, **LORA
        ),
        args=TrainingArguments(**trainer_settings(job), bf16=job.dtype == torch.bfloat16),
        train_dataset=[row | {"attention_mask": [1] * len(row["labels"])} for row in job.rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, padding=True),
    )
    return run_trainer(trainer)


def trl(job: Job) -> Steps:
    """TRL's trainer, in the fastest setting known to us on the same rows, FlashAttention aside."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer, lora = load(job)
    # All versions take a mask with token ids; only newer ones take labels.
    masks = [[int(label != IGNORED) for label in row["labels"]] for row in job.rows]
    ids = [row["input_ids"] for row in job.rows]
    settings = SFTConfig(
        **trainer_settings(job),
        bf16=job.dtype == torch.bfloat16,
        gradient_checkpointing=False,
        completion_only_loss=True,
        max_length=max(MAX_LENGTH, *map(len, ids)),
        packing=False,
        padding_free=False,
        use_liger_kernel=DEVICE.type == "cuda",
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_dict({"input_ids": ids, "completion_mask": masks}),
        processing_class=tokenizer,
        peft_config=lora,
    )
    return run_trainer(trainer)


def offbook(job: Job, fast: bool) -> Steps:
    """The steps of `offbook.training`, without its logs and checkpoints."""
    seconds, losses = zip(*steps(job, fast=fast), strict=True)
    return list(seconds), mean(losses)


def steps(job: Job, *, fast: bool) -> Iterator[tuple[float, float]]:
    """The seconds and the loss of every step with offbook's fast path, or its plain one."""
    import numpy as np

    from offbook.engine.engine import Engine
    from offbook.engine.memory import prepare_allocator
    from offbook.models.adapter import attach_adapter
    from offbook.models.load import load_base
    from offbook.settings.sections import LoraSettings
    from offbook.tokens.examples import Example
    from offbook.training.plan import MOST_TOKENS

    prepare_allocator(DEVICE)
    base = load_base(Path(job.folder), job.dtype, DEVICE)
    model = attach_adapter(base, LoraSettings(lora_dropout=job.dropout, **LORA), 0, "base")
    engine = Engine(model, fast=fast)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    examples = [
        Example(np.array(row["input_ids"], np.int32), np.array(row["labels"], np.int32))
        for row in job.rows
    ]
    for k in range(len(examples) // STEP):
        start = now()
        step = engine.make_step(examples[k * STEP : (k + 1) * STEP], MOST_TOKENS.on(DEVICE), DEVICE)
        loss = engine.accumulate(step, [0, k])
        assert loss is not None
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield now() - start, loss


CONTESTANTS: dict[str, Callable[[Job], Steps]] = {
    "recipe": lambda job: recipe(job, checkpointing=True),
    "recipe-no-checkpointing": lambda job: recipe(job, checkpointing=False),
    "trl": trl,
    "unsloth": unsloth,
    "offbook": lambda job: offbook(job, fast=True),
    "offbook-plain": lambda job: offbook(job, fast=False),
}


def load(job: Job) -> tuple[Any, Any, Any]:
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=job.dtype)
    tokenizer = AutoTokenizer.from_pretrained(job.folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, LoraConfig("CAUSAL_LM", lora_dropout=job.dropout, **LORA)


def trainer_settings(job: Job) -> dict[str, Any]:
    return {
        "output_dir": job.scratch,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATION,
        "max_steps": len(job.rows) // STEP,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",  # the rows are shuffled already
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": DEVICE.type == "cpu",
    }


def run_trainer(trainer: Any) -> Steps:
    from transformers import TrainerCallback

    marks: list[float] = []  # beginnings and ends of steps, in turn

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(now())

        on_step_end = on_step_begin

    trainer.add_callback(Timer())
    loss = trainer.train().training_loss
    return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)], loss
