"""What an adapter costs in replies: tokens a second of the base, of both side by side, and merged.

    python benchmarks/replies.py [BASE] [--precision auto] [--rounds 3] [--distance]

One reply, and 16 that are written together, each of 64 tokens after a prompt of 32; an adapter of
r 8 on the seven projections with random weights. They take turns; medians. With
`--distance`, also how far the logits are from those in float32, relative to their size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from contextlib import nullcontext

import torch
from machine import DEVICE, describe_machine
from peft import PeftModel

from offbook.inference.batch import greedy_replies
from offbook.inference.generate import Sampling, generate
from offbook.inference.merged import Merged
from offbook.models.adapter import attach_adapter, lora_layers
from offbook.models.base import resolve_base
from offbook.models.load import choose_precision, load_base
from offbook.settings.sections import LoraSettings

TOKENS, PROMPT, TOGETHER = 64, 32, 16


def make_model(base: str, dtype: torch.dtype) -> PeftModel:
    """The base with an adapter whose change is 2% of the weights' size."""
    model = attach_adapter(load_base(resolve_base(base), dtype, DEVICE), LoraSettings(), 0, base)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for layer in lora_layers(model):
        b = layer.lora_B["default"].weight
        b.data.normal_(generator=generator)
        weight = layer.get_base_layer().weight
        b.data *= 0.02 * weight.float().norm() / layer.get_delta_weight("default").norm()
    return model.eval()


def seconds(model: PeftModel, count: int) -> float:
    """To write so many replies."""
    prompts = [[100 + row, *range(10, 9 + PROMPT)] for row in range(count)]
    start = time.perf_counter()
    if count == 1:
        greedy = Sampling(temperature=0, max_new_tokens=TOKENS)
        list(generate(model, prompts[0], (), greedy, torch.Generator(DEVICE)))
    else:
        greedy_replies(model, prompts, (), TOKENS)
    return time.perf_counter() - start


@torch.no_grad()
def logits(model: PeftModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(10, 138, device=DEVICE)[None]).logits
    return found.float()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", nargs="?", default="smollm2-135m")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distance", action="store_true", help="compare the logits with float32's")
    options = parser.parse_args()
    dtype = choose_precision(options.precision, DEVICE)
    exact = logits(make_model(options.base, torch.float32)) if options.distance else None
    model = make_model(options.base, dtype)
    merged = Merged(model, most=lambda device: 2**62)
    forms = {"base": merged.without_adapter, "side by side": nullcontext, "merged": merged.used}
    times = defaultdict(list)
    for _ in range(options.rounds + 1):  # the first is a warm-up
        for count in (1, TOGETHER):
            for form, context in forms.items():
                with context():
                    times[form, count].append(seconds(model, count))
    print(
        f"| | one reply, tokens/s | {TOGETHER} together, tokens/s | distance |\n|---|--:|--:|--:|"
    )
    for form, context in forms.items():
        rates = [n * TOKENS / statistics.median(times[form, n][1:]) for n in (1, TOGETHER)]
        distance = ""
        if exact is not None and form != "base":
            with context():
                distance = f"{float((logits(model) - exact).norm() / exact.norm()):.2%}"
        print(f"| {form} | {rates[0]:.1f} | {rates[1]:.0f} | {distance} |")
    print(describe_machine(dtype))


if __name__ == "__main__":
    main()
