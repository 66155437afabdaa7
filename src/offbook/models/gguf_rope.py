"""How a GGUF's model rotates queries and keys, where transformers reads less than the file says.

transformers takes the base of the frequencies from a GGUF and no scaling of them. Without it, the
models from Llama 3.1 on, and those extended by linear scaling, compute something else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offbook.errors import ModelError

FACTORS = "rope_freqs.weight"  # what Llama 3 divides each frequency by
# Of all published models with the scaling of Llama 3, which differ in `factor`.
LLAMA_3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def scaling_from_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Collection[str]
) -> dict[str, Any]:
    """What `rope_parameters` of a model's configuration says beside `rope_theta`.

    Args:
        path: of the GGUF.
        metadata: the keys and values of its header.
        tensors: their names.

    Returns:
        Empty where frequencies are not scaled.

    Raises:
        ModelError: when they are scaled in another way than by Llama 3's rule or linearly.
    """
    family = metadata["general.architecture"]
    kind = metadata.get(f"{family}.rope.scaling.type", "none")
    if FACTORS in tensors and kind in ("none", "llama3"):
        factors = _read(path, FACTORS)
        if np.allclose(factors, 1):
            return {}
        base = metadata[f"{family}.rope.freq_base"]
        factor = round(float(factors.max()), 3)
        if np.allclose(factors, _llama_3_factors(len(factors), base, factor), rtol=1e-3):
            return {"rope_type": "llama3", "factor": factor, **LLAMA_3}
        kind = "of an unknown kind"
    elif any(name.startswith("rope_") for name in tensors):
        kind = "longrope"
    elif kind == "none":
        return {}
    elif kind == "linear":
        factor = float(metadata[f"{family}.rope.scaling.factor"])
        return {"rope_type": "linear", "factor": factor}
    raise ModelError(
        f"the scaling of its rotary positions ({kind}) is not read from a GGUF",
        where=str(path),
        fix="use the model with safetensors weights, by its hub id (owner/name) or as a folder",
    )


def _llama_3_factors(count: int, base: float, factor: float) -> np.ndarray:
    """[count]: what each frequency is divided by, as transformers computes it."""
    low, high, length = LLAMA_3.values()
    wavelengths = 2 * math.pi * base ** (np.arange(count) / count)
    smooth = (length / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(smooth >= 1, 1, np.where(smooth <= 0, factor, between))


def _read(path: Path, name: str) -> np.ndarray:
    from gguf import GGUFReader

    tensor = next(t for t in GGUFReader(str(path)).tensors if t.name == name)
    return np.asarray(tensor.data, dtype=np.float32)
