"""llama.cpp's engine, through the binding `xllamacpp`: another program that reads GGUF files.

The binding starts llama.cpp's own server inside this process. It listens on a Unix socket in a
private folder, and asks for a random key, so that no other program can use it.
"""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.data.messages import Message
from offbook.errors import ConfigError, ModelError, first_line
from offbook.inference.generate import Sampling

BINDING = "xllamacpp"
RANDOM_SEED = 2**32 - 1  # with this seed, llama.cpp takes another one each time
FORCED = 1000.0  # a bias with which a token is chosen whatever its logit


@dataclass(frozen=True)
class Ids:
    """The tokens that llama.cpp generates.

    Attributes:
        ids: the tokens, without the stop token.
        stopped: whether a stop token ended it, rather than the limit.
    """

    ids: list[int]
    stopped: bool


class LlamaCpp:
    """A GGUF model in llama.cpp; used in a `with` statement, which ends it.

    Args:
        model: the GGUF file.
        loras: GGUF adapters for it.
        context: most tokens of a sequence.
        slots: how many sequences may be generated at a time.
        exact: compute attention in float32, to compare; by default, llama.cpp rounds keys and
            values to float16.
        threads: of the processor; by default, PyTorch's.

    Raises:
        ConfigError: when the binding is not installed.
        ModelError: when llama.cpp does not load a file.
    """

    def __init__(
        self,
        model: Path,
        loras: Sequence[Path] = (),
        context: int = 2048,
        slots: int = 1,
        exact: bool = False,
        threads: int | None = None,
    ) -> None:
        x = _binding()
        parameters = x.CommonParams()
        parameters.model.path = str(model)
        parameters.lora_adapters = [x.CommonAdapterLoraInfo(str(lora), 1.0) for lora in loras]
        self._context = context
        parameters.n_ctx, parameters.n_parallel = context * slots, slots
        parameters.kv_unified = parameters.ctx_shift = False  # each slot has a context of its own
        parameters.warmup, parameters.verbosity = False, 0
        parameters.ui, parameters.offline = False, True
        parameters.special = True  # control tokens have text, as they have in ours
        # Its cache of prompts ignores the adapter, so that a base would continue an adapter's
        # prompt (llama.cpp #26207).
        parameters.cache_ram_mib = 0
        chosen = threads or torch.get_num_threads()
        for cpu in (parameters.cpuparams, parameters.cpuparams_batch):
            # A thread that waits must not keep a core that another program could use.
            cpu.n_threads, cpu.poll = chosen, 0
        if exact:
            parameters.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.cache_type_k = parameters.cache_type_v = x.ggml_type.GGML_TYPE_F32
        self._folder = tempfile.TemporaryDirectory(prefix="offbook-")  # of mode 0700
        self._socket = str(Path(self._folder.name, "llama.sock"))
        self._key = secrets.token_hex()
        parameters.hostnames, parameters.api_keys = [self._socket], [self._key]
        try:
            self._server = x.Server(parameters)
        except RuntimeError as error:
            self._folder.cleanup()
            raise ModelError(f"llama.cpp does not load it: {error}", where=str(model)) from None
        # Told to end before its loop has begun, it would never end.
        self._post("/completion", {"prompt": [0], "n_predict": 0, "cache_prompt": False})

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *error: object) -> None:
        del self._server  # which ends its threads
        self._folder.cleanup()

    def tokenize(self, text: str) -> list[int]:
        """The ids of a prompt's text, as its own chat makes them: with control tokens in it."""
        body = {"content": text, "parse_special": True, "add_special": True}
        return list(self._post("/tokenize", body)["tokens"])

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that its own reader of chat templates writes for a conversation."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return str(self._post("/apply-template", {"messages": turns})["prompt"])

    def log_probabilities(
        self, ids: Sequence[int], vocabulary: int, forced: int
    ) -> NDArray[np.float64]:
        """The logarithm of each token's probability after a prompt.

        Args:
            ids: the prompt.
            vocabulary: the number of tokens.
            forced: a token of one whole character. It is generated, since llama.cpp tells nothing
                of the probabilities where it generates a part of a character.

        Returns:
            float64 [vocabulary].
        """
        (told,) = self._probabilities(ids, vocabulary, forced)
        values = np.full(vocabulary, -np.inf)
        for token in told["top_logprobs"]:
            values[token["id"]] = token["logprob"]
        values -= np.logaddexp.reduce(values)  # its own sum is in float32
        return values

    def log_probability(
        self, ids: Sequence[int], target: int, vocabulary: int, forced: int
    ) -> float:
        """That of one token after a prompt; see `log_probabilities`."""
        # It is told of a generated token, unless that is a part of a character.
        for token in self._probabilities(ids, 1, target):
            if token["id"] == target:
                return float(token["logprob"])
        return float(self.log_probabilities(ids, vocabulary, forced)[target])

    def generate(self, ids: Sequence[int], most: int) -> Ids:
        """The likeliest reply to a prompt, of at most so many tokens."""
        reply = self._post(
            "/completion",
            {
                "prompt": list(ids),
                "n_predict": most,
                "temperature": 0,
                "return_tokens": True,
                "cache_prompt": False,
            },
        )
        stopped = reply["stop_type"] == "eos"
        ids = list(reply["tokens"])
        return Ids(ids[:-1] if stopped else ids, stopped)

    def stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        control: Collection[int],
        strengths: Sequence[float],
        stop: Sequence[str] = (),
        slot: int = 0,
    ) -> Completion:
        """Begin a reply.

        Args:
            ids: the prompt.
            sampling: how tokens are chosen.
            control: tokens whose text is left out where one ends the reply.
            strengths: of each adapter, in their order.
            stop: texts that end the reply and are not in it.
            slot: where it is generated. The beginning of the slot's last prompt is not computed
                again, if the strengths are the same.
        """
        body = {
            **_sampled(sampling, self._context),
            "prompt": list(ids),
            "lora": [{"id": i, "scale": strength} for i, strength in enumerate(strengths)],
            "stop": list(stop),
            "id_slot": slot,
            "stream": True,
            "return_tokens": True,
        }
        return Completion(_Connection(self._socket, self._key), body, control)

    def _probabilities(self, ids: Sequence[int], top: int, forced: int) -> list[dict[str, Any]]:
        """What is told of the token after a prompt; nothing for a part of a character."""
        body = {
            "prompt": list(ids),
            "n_predict": 1,
            "temperature": 0,
            "n_probs": top,
            "logit_bias": [[forced, FORCED]],
        }
        told = self._post("/completion", body).get("completion_probabilities", [])
        return list(told)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        connection = _Connection(self._socket, self._key)
        try:
            return json.loads(connection.post(path, body).read())
        finally:
            connection.close()


class Completion:
    """A reply that llama.cpp is writing: iterate over it once, for its text in whole characters.

    Attributes:
        tokens: how many there are so far, without the stop token.
        stopped: whether a stop token or a stop text has ended it, rather than the limit.

    Raises:
        ModelError: in the iteration, when llama.cpp refuses the prompt or fails.
    """

    def __init__(
        self, connection: _Connection, body: dict[str, Any], control: Collection[int]
    ) -> None:
        self.tokens, self.stopped = 0, False
        self._connection, self._body, self._control = connection, body, control
        self._given_up = False

    def __iter__(self) -> Iterator[str]:
        held = ""  # the text of control tokens, of which the last may be the stop token
        try:
            for event in self._events():
                self.tokens = event["tokens_predicted"]
                if event["stop"]:
                    self.stopped = event["stop_type"] != "limit"
                    if event["stop_type"] == "eos":
                        self.tokens -= 1
                    elif held:
                        yield held
                    return
                held += event["content"]
                if event["tokens"][-1:] and event["tokens"][-1] not in self._control:
                    yield held
                    held = ""
        except (OSError, http.client.HTTPException) as error:
            if not self._given_up:
                raise ModelError(f"llama.cpp has ended: {first_line(error)}") from None
        finally:
            self._connection.close()

    def stop(self) -> None:
        """End it before the next token; any thread may call this."""
        self._given_up = True
        self._connection.shut()

    def _events(self) -> Iterator[dict[str, Any]]:
        answer = self._connection.post("/completion", self._body, lambda: self._given_up)
        for line in answer:
            if line.startswith(b"data: "):
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    raise ModelError(f"llama.cpp has failed: {event['error']['message']}")
                yield event


def _sampled(sampling: Sampling, context: int) -> dict[str, Any]:
    """Sampling in llama.cpp's words, in the order in which transformers does it."""
    return {
        "samplers": ["penalties", "temperature", "top_k", "top_p"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repeat_penalty": sampling.repetition_penalty,
        "repeat_last_n": context,  # all tokens of prompt and reply
        "seed": -1 if sampling.seed is None else sampling.seed % RANDOM_SEED,
        "n_predict": sampling.max_new_tokens,
    }


def reader_name() -> str:
    """The name and version of the binding.

    Raises:
        ConfigError: when it is not installed.
    """
    _binding()
    return f"llama.cpp ({BINDING} {version(BINDING)})"


def _binding() -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise ConfigError(
            "llama.cpp is not installed", fix="run `pip install 'offbook[gguf]'`"
        ) from None
    return xllamacpp


class _Connection(http.client.HTTPConnection):
    """A connection to llama.cpp's socket."""

    def __init__(self, path: str, key: str) -> None:
        super().__init__("localhost")
        self._path, self._key = path, key
        self._own = socket.socket(socket.AF_UNIX)  # http.client forgets its own too early

    def connect(self) -> None:
        self._own.connect(self._path)
        self.sock = self._own

    def close(self) -> None:
        super().close()
        self._own.close()

    def post(
        self, path: str, body: dict[str, Any], given_up: Callable[[], bool] = lambda: False
    ) -> http.client.HTTPResponse:
        """The answer to a request; that to a stream comes with its first token."""
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        self.request("POST", path, json.dumps(body), headers)
        if given_up():  # before there was a connection that could be shut
            self.shut()
        answer = self.getresponse()
        if answer.status != 200:
            content = json.loads(answer.read())
            raise ModelError(f"llama.cpp refuses a request: {content['error']['message']}")
        return answer

    def shut(self) -> None:
        """Wake the thread that reads, and tell llama.cpp that nobody does."""
        with suppress(OSError):
            self._own.shutdown(socket.SHUT_RDWR)
