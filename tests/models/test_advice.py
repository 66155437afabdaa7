"""A base that is refused is used after the repair that the error advises."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from offbook.errors import CheckpointError, OffbookError
from offbook.models.adapter import attach_adapter, load_adapter
from offbook.models.load import load_base
from offbook.monitor import Monitor
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings
from offbook.training.inputs import gather
from offbook.training.setup import load
from offbook.training.train import train
from support.families import make_family
from support.gguf_files import Vocabulary, write_gguf
from support.hostile import PICKLE
from support.tiny import save_adapter

MakeConfig = Callable[..., Config]
Change = Callable[[Path], None]
CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"


def edit(**changes: object) -> Change:
    def change(base: Path) -> None:
        path = base / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))

    return change


def link(base: Path) -> None:
    (base / WEIGHTS).rename(base.parent / "weights")
    (base / WEIGHTS).symlink_to(base.parent / "weights")


def replace_the_link(base: Path) -> None:
    file = (base / WEIGHTS).resolve()
    (base / WEIGHTS).unlink()
    shutil.copy(file, base / WEIGHTS)


def put_under_another_name(base: Path) -> None:
    edit(transformers_weights="other.safetensors")(base)
    (base / WEIGHTS).rename(base / "other.safetensors")


def put_under_its_name(base: Path) -> None:
    edit(transformers_weights=None)(base)
    (base / "other.safetensors").rename(base / WEIGHTS)


def make_adapter(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")


def remove_adapter(base: Path) -> None:
    (base / "adapter_config.json").unlink()


def without_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").rename(base.parent / "tokenizer.json")


def save_tokenizer(base: Path) -> None:
    """As with a model that has the files of an older tokenizer only."""
    whole = shutil.copytree(base, base.parent / "whole")
    shutil.copy(base.parent / "tokenizer.json", whole)
    AutoTokenizer.from_pretrained(whole).save_pretrained(base)


# What spoils a folder, what is said, and the repair.
REPAIRS: dict[str, tuple[Change, str, Change]] = {
    "link": (link, "replace the link with the file", replace_the_link),
    "weights under another name": (
        put_under_another_name,
        "remove transformers_weights, and put model.safetensors in the folder",
        put_under_its_name,
    ),
    "adapter": (
        make_adapter,
        "use the base that it was trained on, which its adapter_config.json does not name; or "
        "remove adapter_config.json, if the other files are those of a whole model",
        remove_adapter,
    ),
    "no tokenizer": (
        without_tokenizer,
        "use a model that ships one, or save it once with AutoTokenizer.save_pretrained",
        save_tokenizer,
    ),
}


def write(name: str, content: bytes) -> Change:
    def change(base: Path) -> None:
        (base / name).unlink(missing_ok=True)
        (base / name).write_bytes(content)

    return change


def make_pipe(base: Path) -> None:
    (base / WEIGHTS).unlink()
    os.mkfifo(base / WEIGHTS)


def index(content: object) -> Change:
    """The weights are in parts, which an index names."""

    def change(base: Path) -> None:
        (base / WEIGHTS).rename(base / "model-00001-of-00001.safetensors")
        write("model.safetensors.index.json", json.dumps({"weight_map": content}).encode())(base)

    return change


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456\n"
NAN = "download the base again, or use another copy"


def scale_head(factor: float) -> Change:
    def change(base: Path) -> None:
        tensors = load_file(base / WEIGHTS)
        tensors["lm_head.weight"] *= factor
        save_file(tensors, base / WEIGHTS, {"format": "pt"})

    return change


# What spoils a folder that is then replaced, and what is said.
DOWNLOADS: dict[str, tuple[Change, str]] = {
    "broken weights": (write(WEIGHTS, b"{}"), "download it again"),
    "broken configuration": (write("config.json", b"{"), "download it again"),
    "no list of weights": (index(None), "download it again"),
    "missing weights": (index({"a": "other.safetensors"}), "download it again"),
    "pointer": (
        write(WEIGHTS, POINTER),
        "run `git lfs pull` in {base}, or download the file again",
    ),
    "pickle": (write(WEIGHTS, PICKLE), "use weights in the safetensors format"),
    "odd names": (index({"a": "../model.safetensors"}), "use another copy of the model"),
    "no weights": (
        lambda base: (base / WEIGHTS).unlink(),
        "use a revision with safetensors; on the hub, model.revision=refs/pr/N names the pull "
        "request that converts them",
    ),
    "quantized": (
        edit(quantization_config={"quant_method": "fp8"}),
        "use the original model, with model.quantization=nf4 if it is too large",
    ),
    "other type": (edit(model_type="other"), "use a Llama-family model"),
    "broken template": (
        write("chat_template.jinja", b"{% for"),
        "use a chat model whose template is intact, or set model.template",
    ),
    "pipe": (make_pipe, "download it again"),
    "weight that is not finite": (scale_head(float("inf")), NAN),
    "weights that are too large": (scale_head(1e38), "use another copy of the model"),
}


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return Path(shutil.copytree(tiny_base, tmp_path / "models" / "base"))


def use(config: Config) -> None:
    load(gather(config, Monitor()), Monitor())


def refusal(config: Config) -> str | None:
    with pytest.raises(OffbookError) as caught:
        use(config)
    return caught.value.fix


@pytest.mark.parametrize("name", REPAIRS)
def test_a_folder_is_used_after_the_repair(tiny_config: MakeConfig, base: Path, name: str) -> None:
    spoil, said, repair = REPAIRS[name]
    config = tiny_config(f"model.base={base}")
    spoil(base)
    assert refusal(config) == said
    repair(base)
    use(config)


@pytest.mark.parametrize("name", DOWNLOADS)
def test_another_copy_is_used(
    tiny_config: MakeConfig, tiny_base: Path, base: Path, name: str
) -> None:
    spoil, said = DOWNLOADS[name]
    config = tiny_config(f"model.base={base}")
    spoil(base)
    assert refusal(config) == said.format(base=base)
    shutil.rmtree(base)
    shutil.copytree(tiny_base, base)
    use(config)


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf", "~nobody/model"])
def test_a_folder_is_used_where_a_name_is_none(
    tiny_config: MakeConfig, base: Path, name: str
) -> None:
    said = refusal(tiny_config(f"model.base={name}"))
    assert said == "give a folder, a .gguf file, a hub id (owner/name) or smollm2-135m"
    use(tiny_config(f"model.base={base}"))


def test_the_setting_names_the_base_of_an_adapter(tiny_config: MakeConfig, tmp_path: Path) -> None:
    adapter = train(tiny_config("train.max_steps=1")).run / "adapter"
    said = str(refusal(tiny_config(f"model.base={adapter}", f"output_dir={tmp_path / 'other'}")))
    found = re.fullmatch(r"use the base that it was trained on: (model\.base=\S+)", said)
    assert found
    use(tiny_config(*shlex.split(found[1])))


@pytest.mark.parametrize("targets", [".*mlp.*", ".*(embed_tokens|q_proj)"])
def test_layers_that_can_have_an_adapter_are_chosen_as_advised(
    tiny_config: MakeConfig, targets: str
) -> None:
    assert refusal(tiny_config(f"lora.target_modules={targets}")) == (
        "set other lora.target_modules, such as all-linear, or use a Llama-family model"
    )
    use(tiny_config("lora.target_modules=all-linear"))


def test_a_llama_is_used_in_place_of_a_model_without_linear_layers(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    other = make_family("gpt2", tmp_path / "gpt2")
    assert refusal(tiny_config(f"model.base={other}")) == "use a Llama-family model"
    use(tiny_config())


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("vocabulary", "changes"),
    [
        (Vocabulary.of_bytes(rule="kimi-k2"), {}),
        (
            Vocabulary.of_bytes(more={"llama.rope.scaling.type": "yarn"}),
            {"rope_parameters": {**YARN, "original_max_position_embeddings": 128}},
        ),
    ],
)
def test_a_folder_is_used_in_place_of_a_gguf(
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    vocabulary: Vocabulary,
    changes: dict[str, object],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "a.gguf", vocabulary)
    assert refusal(tiny_config(f"model.base={file}")) == (
        "use the model with safetensors weights, by its hub id (owner/name) or as a folder"
    )
    use(tiny_config(f"model.base={make_family('llama', tmp_path / 'folder', **changes)}"))


def test_an_adapter_is_loaded_on_its_own_base(tiny_base: Path, tmp_path: Path) -> None:
    def on(folder: Path) -> None:
        load_adapter(load_base(folder, torch.float32, CPU), tmp_path / "adapter")

    with pytest.raises(CheckpointError) as caught:
        on(tiny_base)
    assert caught.value.fix == "train one first"
    model = load_base(tiny_base, torch.float32, CPU)
    save_adapter(attach_adapter(model, LoraSettings(), 1, "tiny"), tmp_path / "adapter")
    with pytest.raises(CheckpointError) as caught:
        on(make_family("llama", tmp_path / "other"))
    assert caught.value.fix == "use the base it was trained on"
    path = tmp_path / "adapter" / "adapter_config.json"
    original = path.read_text()
    path.write_text(original.replace('"LORA"', '"XLORA"'))
    with pytest.raises(CheckpointError) as caught:
        on(tiny_base)
    assert caught.value.fix == "use an adapter made by offbook"
    path.write_text(original)
    on(tiny_base)
