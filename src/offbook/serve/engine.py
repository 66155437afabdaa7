"""One base and the adapters of several runs in llama.cpp, under names of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from offbook.engine.machine import processors
from offbook.errors import CheckpointError, ConfigError
from offbook.export.gguf import longest_context
from offbook.export.weights import BaseWeights
from offbook.files.cache import cache_folder, temporary_folder
from offbook.inference.generate import Sampling
from offbook.inference.llamacpp import Completion, LlamaCpp, reader_name
from offbook.inference.model import FoundModel
from offbook.runs.receipt import hash_base
from offbook.serve.gguf import PARTIAL, adapter_gguf, base_gguf
from offbook.tokens.template import ChatTemplate

BASE = "base"  # the name of the base without an adapter
CONTEXT = 4096  # tokens, by default; llama.cpp reserves memory for all of them


@dataclass(frozen=True)
class Role:
    """A model that answers under a name.

    Attributes:
        name: of the run's folder, or `BASE`.
        template: turns conversations into tokens.
        system: its system text, where a conversation has none.
        adapter: the number of its adapter; None for the base.
    """

    name: str
    template: ChatTemplate
    system: str | None
    adapter: int | None


@dataclass(frozen=True)
class Engine:
    """llama.cpp with one base and its adapters. `start` makes it.

    Attributes:
        roles: by name, the base last.
        context: most tokens of prompt and reply together.
        vocabulary: the number of tokens that the base has embeddings for.
        slots: how many replies are written at a time.
    """

    roles: dict[str, Role]
    context: int
    vocabulary: int
    slots: int
    _llama: LlamaCpp
    _adapters: int

    def strengths(self, role: Role, strength: float) -> tuple[float, ...]:
        """The strength of each adapter, where a role answers with this one of its own."""
        return tuple(strength * (i == role.adapter) for i in range(self._adapters))

    def reply(
        self,
        role: Role,
        prompt: Sequence[int],
        sampling: Sampling,
        strengths: Sequence[float],
        stop: Sequence[str] = (),
        slot: int = 0,
    ) -> EngineReply:
        """Begin a reply in a slot that is free."""
        control = role.template.encoder.control.values()
        completion = self._llama.stream(prompt, sampling, control, strengths, stop, slot)
        return EngineReply(completion, role.template)


class EngineReply:
    """A reply that is being written; see `Reply`."""

    def __init__(self, completion: Completion, template: ChatTemplate) -> None:
        self._completion, self._template = completion, template

    @property
    def tokens(self) -> int:
        """How many it has so far, without the stop token."""
        return self._completion.tokens

    @property
    def stopped(self) -> bool:
        """Whether the model has ended it, rather than the limit."""
        return self._completion.stopped

    def __iter__(self) -> Iterator[str]:
        yield from self._template.trim_reply(self._completion)

    def stop(self) -> None:
        """End it before the next token; any thread may call this."""
        self._completion.stop()


@contextmanager
def start(
    found: Sequence[FoundModel],
    kind: str = "f16",
    context: int | None = None,
    slots: int = 1,
    threads: int | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Iterator[Engine]:
    """Load a base, and the adapters of models that were trained on it, into llama.cpp.

    Args:
        found: the models, all of one base.
        kind: the number format of the base's matrices, a key of `gguf.TYPES`.
        context: most tokens of prompt and reply; by default the base's, up to `CONTEXT`.
        slots: how many replies are written at a time.
        threads: of the processor; by default, one fewer than may be used. Where one of them waits
            for a core, such as the one that our own threads need, all wait.
        announce: receives a line before something slow.

    Raises:
        ConfigError: when the binding is not installed, two models have one name, or the base has
            a shorter context.
        CheckpointError: when they have different bases, or an adapter is not plain LoRA.
        ModelError: when llama.cpp does not compute this type of model.
    """
    reader_name()
    roles = _roles(found)
    base = BaseWeights.of(found[0].base)
    longest = longest_context(base)
    if context is not None and context > longest:
        what = f"with this base, llama.cpp takes at most {longest:,} tokens"
        raise ConfigError(what, where="--context", fix="give fewer")
    context = context or min(longest, CONTEXT)
    for one in found:
        if one.quantization != "none":
            announce(
                f"{one.path}: trained on a base in {one.quantization}, served on one in {kind}"
            )
    model = base_gguf(found[0], kind, announce)
    with temporary_folder(cache_folder(), PARTIAL) as folder:
        adapted = [one for one in found if one.adapter]
        adapters = [folder / f"{number}.gguf" for number in range(len(adapted))]
        for one, path in zip(adapted, adapters, strict=True):
            adapter_gguf(one, path)
        threads = threads or max(1, processors() - 1)
        with LlamaCpp(model, adapters, context, slots, threads=threads) as llama:
            vocabulary = base.config["vocab_size"]
            yield Engine(roles, context, vocabulary, slots, llama, len(adapters))


def _roles(found: Sequence[FoundModel]) -> dict[str, Role]:
    first, roles, adapters = found[0], dict[str, Role](), 0
    expected = hash_base(first.base)
    for one in found:
        name = one.path.resolve().name if one.adapter else BASE
        if name in roles or (one.adapter and name == BASE):
            what = f"two models would have the name {name!r}"
            raise ConfigError(what, where=str(one.path), fix="rename the folder of one of them")
        if hash_base(one.base) != expected:
            raise CheckpointError(
                f"it has another base than {first.path}",
                where=str(one.path),
                fix="serve it from a process of its own",
            )
        roles[name] = Role(name, one.template, one.system, adapters if one.adapter else None)
        adapters += bool(one.adapter)
    roles.setdefault(BASE, Role(BASE, first.template, None, None))
    return roles
