"""The weights of a base and of its adapter in float32, one tensor at a time, alone or merged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.errors import CheckpointError, ModelError
from offbook.files.untrusted import Tensor, read_base_tensors, read_json, read_tensors
from offbook.models.adapter import DORA, FLOATS, LORA_A, LORA_B, PREFIX, read_adapter
from offbook.models.adapter_config import require_strength
from offbook.models.base import ADAPTER_WEIGHTS, read_config
from offbook.models.skeleton import make_skeleton

Float32 = NDArray[np.float32]

FREQUENCIES = "rotary_emb.inv_freq"  # stored by older versions of transformers, as of Llama 2


@dataclass(frozen=True)
class BaseWeights:
    """The tensors of a model folder.

    Attributes:
        folder: with config.json and safetensors.
        tensors: each with the file that holds it; without a head that is tied to the embedding, and
            without rotary frequencies, which follow from config.json.
    """

    folder: Path
    tensors: dict[str, tuple[Path, Tensor]]

    @classmethod
    def of(cls, folder: Path) -> BaseWeights:
        """The tensors in a folder.

        Raises:
            ModelError: when one is in a format that is not a plain number.
        """
        tensors = {
            name: found
            for name, found in read_base_tensors(folder).items()
            if not name.endswith(FREQUENCIES)
        }
        if read_json(folder / "config.json", ModelError).get("tie_word_embeddings"):
            tensors.pop("lm_head.weight", None)
        for name, (path, tensor) in tensors.items():
            if tensor.dtype not in FLOATS:
                raise ModelError(
                    f"{name} is stored as {tensor.dtype}",
                    where=str(path),
                    fix="use the original model, whose weights are not quantized",
                )
        return cls(folder, tensors)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The contents of config.json."""
        return read_json(self.folder / "config.json", ModelError)

    def read(self, name: str) -> Float32:
        """A tensor; only this one is in memory."""
        return read_tensor(*self.tensors[name])


@dataclass(frozen=True)
class LoraWeights:
    """An adapter of a base.

    Attributes:
        folder: its PEFT folder.
        rank: of its matrices.
        scale: by which B A is multiplied; its strength is in it.
        modules: the names of the layers that it changes.
        tensors: by PEFT's names.
        dora: whether it also sets the length of each row of a weight (DoRA).
    """

    folder: Path
    rank: int
    scale: float
    modules: tuple[str, ...]
    tensors: dict[str, Tensor]
    dora: bool

    @classmethod
    def of(cls, folder: Path, base: Path, strength: float = 1.0) -> LoraWeights:
        """The adapter in a folder, checked against its base.

        Args:
            folder: of the adapter.
            base: the folder of its base.
            strength: multiplies what the adapter adds; 1 for what was trained.

        Raises:
            CheckpointError: when it does not fit the base.
            ConfigError: when it has no other strength than 1.
        """
        config = read_adapter(folder, make_skeleton(read_config(base)))
        require_strength(strength, use_dora=config.use_dora)
        divisor = config.r**0.5 if config.use_rslora else config.r
        assert isinstance(config.target_modules, set | list)
        return cls(
            folder,
            config.r,
            strength * config.lora_alpha / divisor,
            tuple(sorted(config.target_modules)),
            read_tensors(folder / ADAPTER_WEIGHTS, CheckpointError),
            config.use_dora,
        )

    def matrices(self, module: str) -> tuple[Float32, Float32]:
        """The A [R, I] and B [O, R] of a layer."""
        return self._read(module, LORA_A), self._read(module, LORA_B)

    def merged(self, module: str, weight_OI: Float32) -> Float32:
        """The weight [O, I] with which a plain layer computes what base and adapter do together."""
        A_RI, B_OR = self.matrices(module)
        sum_OI = B_OR @ A_RI
        sum_OI *= np.float32(self.scale)
        sum_OI += weight_OI
        if not self.dora:
            return sum_OI
        lengths_O = np.linalg.norm(sum_OI, axis=1)
        sum_OI *= (self._read(module, DORA) / lengths_O)[:, None]
        return sum_OI

    def require_layers(self, base: BaseWeights) -> None:
        """Check that the base has a tensor for each layer that the adapter changes.

        Raises:
            ModelError: when it stores one together with others, as some mixtures of experts do.
        """
        missing = [m for m in self.modules if f"{m}.weight" not in base.tensors]
        if missing:
            raise ModelError(
                f"{missing[0]} is stored together with others, so nothing can be added to it",
                where=str(base.folder),
                fix="use --to adapter",
            )

    def _read(self, module: str, part: str) -> Float32:
        return read_tensor(self.folder / ADAPTER_WEIGHTS, self.tensors[PREFIX + module + part])


def read_tensor(path: Path, tensor: Tensor) -> Float32:
    """A tensor of a safetensors file, in float32."""
    stored = np.memmap(path, np.uint8, "c", tensor.begin, (tensor.end - tensor.begin,))
    numbers = torch.frombuffer(stored, dtype=FLOATS[tensor.dtype])
    return numbers.to(torch.float32, copy=True).reshape(tensor.shape).numpy()
