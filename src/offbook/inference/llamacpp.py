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
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offbook.data.conversations import Message
from offbook.errors import ConfigError, ModelError

BINDING = "xllamacpp"
FORCED = 1000.0  # a bias with which a token is chosen whatever its logit


@dataclass(frozen=True)
class Reply:
    """What llama.cpp generates.

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
        lora: a GGUF adapter for it, if any.
        context: most tokens of a sequence.
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
        lora: Path | None = None,
        context: int = 2048,
        exact: bool = False,
        threads: int | None = None,
    ) -> None:
        x = _binding()
        parameters = x.CommonParams()
        parameters.model.path = str(model)
        if lora:
            parameters.lora_adapters = [x.CommonAdapterLoraInfo(str(lora), 1.0)]
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.warmup, parameters.verbosity = False, 0
        parameters.ui, parameters.offline = False, True
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
            raise ModelError(
                f"llama.cpp does not load it: {error}", where=str(model), fix="use --to merged"
            ) from None

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

    def generate(self, ids: Sequence[int], most: int) -> Reply:
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
        return Reply(ids[:-1] if stopped else ids, stopped)

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
        connection = _UnixConnection(self._socket)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        if answer.status != 200:
            raise ModelError(f"llama.cpp refuses a request: {content['error']['message']}")
        return content


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
            "llama.cpp is not installed, with which GGUF files are checked",
            where="--to",
            fix="run `pip install 'offbook[gguf]'`, or add --no-verify",
        ) from None
    return xllamacpp


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)
