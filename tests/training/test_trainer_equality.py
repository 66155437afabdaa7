"""The engine against transformers' Trainer with PEFT, given the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainingArguments

from offbook.models.adapter import restore_adapter
from offbook.monitor import Monitor, StepMetrics
from offbook.settings.config import Config
from offbook.training.schedule import Schedule
from offbook.training.setup import LoadedRun, prepare
from offbook.training.train import train
from support.runs import records_of

STEPS, BATCH, DEVICE_BATCH = 30, 4, 2


class _Order(Sampler[int]):
    def __init__(self, rows: list[int]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def train_with_trainer(run: LoadedRun, folder: Path) -> list[float]:
    """Train the run's model with transformers' Trainer, on the same rows; the loss of each step."""
    settings, examples = run.inputs.config.train, run.inputs.training
    schedule = Schedule.of(len(examples), run.inputs.config)
    order = [int(row) for step in range(STEPS) for row in schedule.rows(step)]

    class Rows(Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"example": examples[index]}

    def pad(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        def padded(rows: list[Any], value: int) -> torch.Tensor:
            tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
            return pad_sequence(tensors, batch_first=True, padding_value=value)

        rows = [item["example"] for item in items]
        return {
            "input_ids": padded([row.input_ids for row in rows], 0),
            "labels": padded([row.labels for row in rows], -100),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
        }

    class OrderedTrainer(Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(
                Rows(), batch_size=DEVICE_BATCH, sampler=_Order(order), collate_fn=pad
            )

    trainer = OrderedTrainer(
        model=run.model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=DEVICE_BATCH,
            gradient_accumulation_steps=BATCH // DEVICE_BATCH,
            max_steps=STEPS,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=3,
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=settings.seed,
        ),
        train_dataset=Rows(),
    )
    with run.engine.plain():
        trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_thirty_steps_give_the_losses_and_the_adapter_of_trainer(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    rows = tmp_path / "twelve.jsonl"
    words = ("one", "two", "three", "keeper", "lamp", "rocks")
    rows.write_text(
        "".join(
            f'{{"instruction": "{w} {k}", "output": "{w} little boat {"x " * k}"}}\n'
            for k, w in enumerate(words * 2)
        )
    )
    config = tiny_config(
        f"data.train={rows}",
        "data.validation=0",
        "lora.lora_dropout=0",
        f"train.batch_size={BATCH}",
        f"train.max_steps={STEPS}",
        "train.warmup_ratio=0.1",
        "train.learning_rate=1e-3",
    )
    run = prepare(config, Monitor())
    their_losses = train_with_trainer(run, tmp_path / "trainer")
    theirs = {n: p.detach() for n, p in run.model.named_parameters() if p.requires_grad}

    result = train(config)
    ours = prepare(config, Monitor()).model
    restore_adapter(ours, result.run / "adapter")
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), theirs[name], rtol=0, atol=1e-5)
    our_losses = [record.loss for record in records_of(StepMetrics, result.run)]
    torch.testing.assert_close(
        torch.tensor(our_losses), torch.tensor(their_losses), rtol=0, atol=1e-4
    )
    moved = max(p.abs().max().item() for n, p in theirs.items() if "lora_B" in n)
    assert moved > 1e-2, "the comparison would be empty if nothing had been learned"
