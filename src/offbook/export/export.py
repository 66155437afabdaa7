"""Export a run: write it in another format, have another program read it, and compare the two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import torch

from offbook.data.messages import Message
from offbook.engine.memory import free_on_gpu
from offbook.errors import ConfigError, ModelError, quoted
from offbook.export.adapter import adapter_card, write_adapter
from offbook.export.certificate import LIMITS, Certificate, Check, Limits, certify
from offbook.export.gguf import require_type, write_lora, write_model
from offbook.export.gguf_tokenizer import other_texts
from offbook.export.held_out import Sample, sample_rows
from offbook.export.merged import write_merged, write_reader_files
from offbook.export.ollama import go_template, modelfile
from offbook.export.readers import NEW_TOKENS, Answers, LlamaCppReader, TransformersReader, ask
from offbook.export.weights import BaseWeights, LoraWeights
from offbook.files import storage
from offbook.inference.generate import Sampling
from offbook.inference.llamacpp import LlamaCpp, reader_name
from offbook.models.adapter import load_adapter, set_strength
from offbook.models.load import load_base
from offbook.runs.receipt import installed_versions
from offbook.runs.trained import TrainedRun

CERTIFICATE = "certificate.json"
CARD = "README.md"
MODELFILE = "Modelfile"
MODEL, ADAPTER = "model.gguf", "adapter.gguf"
TARGETS = ("adapter", "merged", "gguf", "gguf-lora", "ollama")
IN_TRANSFORMERS = ("adapter", "merged")  # the others are for llama.cpp


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: with the export.
        certificate: None when it was not compared.
        note: how to use it.
    """

    folder: Path
    certificate: Certificate | None
    note: str


@dataclass(frozen=True)
class Original:
    """What is exported, and what an export is compared with.

    Attributes:
        run: the run.
        strength: multiplies what the adapter adds.
        base: its weights.
        lora: the adapter's; the strength is in them.
    """

    run: TrainedRun
    strength: float
    base: BaseWeights
    lora: LoraWeights

    @classmethod
    def of(cls, run: TrainedRun, strength: float = 1.0) -> Original:
        """A run with a strength.

        Raises:
            ModelError: when the base's weights are not plain numbers.
            CheckpointError: when the adapter does not fit it.
            ConfigError: when it has no other strength than 1.
        """
        base, lora = BaseWeights.of(run.base), LoraWeights.of(run.adapter, run.base, strength)
        return cls(run, strength, base, lora)

    @cached_property
    def sample(self) -> Sample:
        """The rows of the comparison.

        Raises:
            DataError: when the data of the run cannot be read.
        """
        return sample_rows(self.run)


def export_run(
    run: TrainedRun,
    target: str,
    folder: Path,
    *,
    kind: str = "f16",
    strength: float = 1.0,
    verify: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Export:
    """Write a run in another format, and prove that it is the same model.

    Args:
        run: the run.
        target: one of `TARGETS`.
        folder: to write; it must not exist.
        kind: the number format of a GGUF, a key of `gguf.TYPES`.
        strength: multiplies what the adapter adds.
        verify: whether another program reads the result, and is compared with the run.
        announce: receives a line before each slow step.

    Raises:
        ConfigError: when the program that would read it is not installed, the number format is
            not written here, or the folder exists.
        DataError: when it is to be compared, and the data of the run cannot be read.
        ModelError: when the format has no place for such a model.
        ExportError: when the result is another model; nothing is left of it.
    """
    require_type(kind)
    if verify and target not in IN_TRANSFORMERS:
        _require_llama_cpp()
    original = Original.of(run, strength)
    with storage.staged(folder) as partial:
        # Before what takes long: the rows may not be here.
        conversations = original.sample.conversations if verify else []
        announce(f"writing {folder}")
        note = _write(partial, original, target, kind, [c.messages[:-1] for c in conversations])
        certificate = None
        if verify:
            announce("comparing it with the run")
            certificate = compare(partial, original, target, kind)
            certificate.require_passed(str(folder))
            (partial / CERTIFICATE).write_bytes(certificate.to_json())
        if target == "adapter":
            (partial / CARD).write_bytes(adapter_card(run, strength, certificate))
    return Export(folder, certificate, note.format(folder=quoted(folder)))


def _require_llama_cpp() -> None:
    try:
        reader_name()
    except ConfigError as error:
        what = f"{error.what}, with which GGUF files are checked"
        raise ConfigError(what, where="--to", fix=f"{error.fix}, or add --no-verify") from None


def _write(
    folder: Path,
    original: Original,
    target: str,
    kind: str,
    prompts: Sequence[Sequence[Message]],
) -> str:
    """Write the files of a target, and return a note on how to use them in `{folder}`.

    Ollama's template is compared with the run's on the prompts.
    """
    run, base, lora = original.run, original.base, original.lora
    if target == "adapter":
        write_adapter(folder, run, original.strength)
        return "how to load it is in {folder}/" + CARD
    if target == "merged":
        lost = write_merged(folder, base, lora)
        write_reader_files(folder, run)
        return f"rounding to the base's format changes {lost:.1%} of what the adapter adds"
    if target == "gguf-lora":
        write_lora(folder / ADAPTER, base, lora)
        return (
            "for a GGUF of the same base, of any type:\n"
            "    llama-server -m BASE.gguf --lora {folder}/" + ADAPTER
        )
    write_model(folder / MODEL, base, lora, kind, run.template)
    if target == "ollama":
        go = go_template(run.template, prompts)
        text = modelfile(MODEL, go, _ollama_parameters(run), run.config.data.system)
        (folder / MODELFILE).write_text(text, encoding="utf-8")
        return "for Ollama:\n    ollama create NAME -f {folder}/" + MODELFILE
    return "for llama.cpp:\n    llama-server -m {folder}/" + MODEL


def compare(folder: Path, original: Original, target: str, kind: str) -> Certificate:
    """Compare what is in a folder with the run; one model is in memory at a time.

    Args:
        folder: with the files of an export.
        original: of which it is an export.
        target: one of `TARGETS`.
        kind: the number format of a GGUF.
    """
    run, base, sample = original.run, original.base, original.sample
    prompts = [run.template.build_prompt(c.messages[:-1]) for c in sample.conversations]
    stop_ids = [run.template.stop_id]
    if target == "adapter":
        kind = "f32"
        answers = ask(TransformersReader(folder, run.base, stop_ids), sample, prompts)
    elif target == "merged":
        stored = {tensor.dtype.lower() for _, tensor in base.tensors.values()}
        kind = next((kind for kind in ("bf16", "f16") if kind in stored), "f32")
        answers = ask(TransformersReader(folder, None, stop_ids), sample, prompts)
    elif target == "gguf-lora":
        kind = "f32"  # so that all differences are the adapter's
        write_model(folder / MODEL, base, None, kind, run.template)
        answers = _ask_llama_cpp(folder / MODEL, [folder / ADAPTER], kind, original, prompts)
        (folder / MODEL).unlink()
    else:
        answers = _ask_llama_cpp(folder / MODEL, (), kind, original, prompts)
    dtype, reference = _reference(run, base)
    quantization = run.config.model.quantization
    loaded = load_base(run.base, dtype, run.device, quantization, run.devices[1:])
    model = load_adapter(loaded, run.adapter)
    set_strength(model, original.strength)
    certificate = certify(
        answers,
        sample,
        prompts,
        model,
        run.template,
        LIMITS[kind].or_looser(reference),
        run.config.model.quantization,
        installed_versions(),
    )
    if target not in IN_TRANSFORMERS:
        certificate.checks.extend(
            Check("other texts", None, f"llama.cpp has other tokens for {texts}")
            for texts in other_texts(run.template)
        )
    return certificate


def _ask_llama_cpp(
    model: Path, loras: Sequence[Path], kind: str, original: Original, prompts: Sequence[list[int]]
) -> Answers:
    longest = max(map(len, [*original.sample.examples, *prompts]))
    letter = original.run.template.encoder.encode(["a"])[0][-1]
    try:
        llama = LlamaCpp(model, loras, context=longest + NEW_TOKENS, exact=kind == "f32")
    except ModelError as error:
        raise ModelError(error.what, where=error.where, fix="use --to merged") from None
    with llama as engine:
        reader = LlamaCppReader(engine, original.base.config["vocab_size"], letter)
        return ask(reader, original.sample, prompts)


def _reference(run: TrainedRun, base: BaseWeights) -> tuple[torch.dtype, Limits]:
    """The precision of the run's model in the comparison, and the limits that come with it.

    It is float32 if memory is enough, whatever the run was trained in.
    """
    if run.config.model.quantization != "none":
        return run.dtype, LIMITS[run.config.model.quantization]
    numbers = sum(tensor.elements for _, tensor in base.tensors.values())
    on_cpu = run.device.type == "cpu"
    free = psutil.virtual_memory().available if on_cpu else free_on_gpu(run.device)
    if 4.5 * numbers < free * len(set(run.devices)):
        return torch.float32, LIMITS["f32"]
    return run.dtype, LIMITS["bf16"]


def _ollama_parameters(run: TrainedRun) -> dict[str, object]:
    """Ollama's settings, so that it samples as `offbook chat` does and stops where it does."""
    sampling = Sampling()
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0,
        "repeat_penalty": sampling.repetition_penalty,
        "num_predict": sampling.max_new_tokens,
        "stop": [run.template.tokenizer.convert_ids_to_tokens(run.template.stop_id)],
    }
