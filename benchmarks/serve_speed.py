"""How fast `offbook serve` writes, against llama.cpp alone on the same GGUF, and transformers.

`python benchmarks/serve_speed.py RUN --threads 1` asks all three the same questions by turns, and
prints tokens per second and the time to the first text of a prompt that was asked before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import torch
from machine import describe_machine, now

from offbook.data.messages import Message
from offbook.inference.generate import Sampling
from offbook.inference.model import find_model
from offbook.serve.engine import start

QUESTIONS = (
    "Tell me a long story of the sea.",
    "How is bread baked?",
    "Describe a storm at night.",
)
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", type=Path)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--tokens", type=int, default=64)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--type", default="f16")
options = parser.parse_args()

torch.set_num_threads(options.threads)
found = find_model(options.run, print)
name = options.run.resolve().name
sampling = Sampling(temperature=0, max_new_tokens=options.tokens)
command = [sys.executable, "-m", "offbook", "serve", str(options.run), "--port", "0"]
command += ["--threads", str(options.threads), "--type", options.type]
server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
assert server.stdout
address = urlsplit(server.stdout.readline().removeprefix("page: ").strip()).netloc
model = found.load()


def through_serve(question: str) -> tuple[int, float]:
    """The tokens of a reply over OpenAI's API, and the seconds to its first text."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": options.tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun, first, tokens = now(), 0.0, 0
    with closing(http.client.HTTPConnection(address)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = now() - begun
                tokens = event.get("usage", {}).get("completion_tokens", tokens)
    return tokens, first


def by_transformers(question: str) -> tuple[int, float]:
    """The tokens of a reply of transformers' `generate`."""
    ids = torch.tensor([found.template.build_prompt([Message("user", question)])])
    with torch.no_grad():
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=options.tokens,
        )
    return whole.shape[1] - ids.shape[1], 0.0


with start([found], options.type, threads=options.threads) as engine:
    role = engine.roles[name]

    def by_llama_cpp(question: str) -> tuple[int, float]:
        """The tokens of a reply of llama.cpp's own server, without ours."""
        prompt = role.template.build_prompt([Message("user", question)])
        reply = engine.reply(role, prompt, sampling, engine.strengths(role, 1.0))
        begun, first = now(), 0.0
        for _ in reply:
            first = first or now() - begun
        return reply.tokens, first

    ways: dict[str, Callable[[str], tuple[int, float]]] = {
        "offbook serve": through_serve,
        "llama.cpp": by_llama_cpp,
        "transformers": by_transformers,
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    firsts: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for question in QUESTIONS:
            for way, ask in ways.items():
                if way != "transformers":
                    ask(question)  # so that its prompt is warm
                begun = now()
                tokens, first = ask(question)
                speeds[way].append(tokens / (now() - begun))
                firsts[way].append(first)
server.terminate()
server.wait()
server.stdout.close()
print(describe_machine(found.dtype), f"{options.threads} threads, {options.type}")
for way in ways:
    middle = statistics.median(speeds[way])
    ratio = statistics.median(
        mine / other for mine, other in zip(speeds["offbook serve"], speeds[way], strict=True)
    )
    print(
        f"{way}: {middle:.1f} tokens/s (offbook serve is {ratio:.2f} times as fast); "
        f"first text of a warm prompt after {1000 * statistics.median(firsts[way]):.0f} ms"
    )
