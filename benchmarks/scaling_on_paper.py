"""What several GPUs would bring, by arithmetic alone: the tables of docs/scaling.md.

    python benchmarks/scaling_on_paper.py

Nothing is measured here, and no GPU is needed. A step takes the time of its arithmetic, divided by
the GPUs, and that of one all-reduce of the adapter's gradients over the slowest link.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What offbook's kernels reach on an H200 with long micro-batches; see docs/gpu.md.
FLOPS = 490e12
LATENCY = 20e-6  # seconds for one message over a network
LINKS = {"1 Gb/s": 1e9, "10 Gb/s": 10e9, "100 Gb/s": 100e9, "400 Gb/s": 400e9, "NVLink": 3.6e12}
COUNTS = (2, 4, 8, 16, 64, 512)
RANKS = (8, 16, 64)
GB = 1e9


@dataclass(frozen=True)
class Base:
    """The shape of a base of the Llama family."""

    name: str
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    keys: int  # width of keys and values

    @property
    def projections(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the seven projections of a layer."""
        d, i, k = self.hidden, self.inner, self.keys
        return [(d, d), (d, k), (d, k), (d, d), (d, i), (d, i), (i, d)]

    @property
    def linear(self) -> int:
        return self.layers * sum(i * o for i, o in self.projections)

    @property
    def parameters(self) -> int:
        return self.linear + 2 * self.vocabulary * self.hidden

    def adapter(self, rank: int) -> int:
        return self.layers * sum(rank * (i + o) for i, o in self.projections)

    def seconds(self, tokens: int, rank: int) -> float:
        """The arithmetic of a step in which half of the tokens are supervised, on one GPU."""
        head = tokens // 2 * 4 * self.vocabulary * self.hidden
        return (tokens * (4 * self.linear + 6 * self.adapter(rank)) + head) / FLOPS


BASES = (
    Base("7B", 4096, 11008, 30, 102400, 4096),
    Base("13B", 5120, 13824, 40, 32000, 5120),
    Base("34B", 8192, 22016, 48, 32000, 1024),
    Base("70B", 8192, 28672, 80, 128256, 1024),
)


def exchange(size: float, count: int, bits: float) -> float:
    """Seconds of a ring all-reduce of so many bytes over `count` processes."""
    return 2 * (count - 1) * (size / count * 8 / bits + LATENCY)


def speed_up(base: Base, rank: int, tokens: int, count: int, bits: float) -> float:
    """How many times as fast as one GPU."""
    alone = base.seconds(tokens, rank)
    return alone / (alone / count + exchange(4 * base.adapter(rank), count, bits))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    line = "| " + " | ".join(head) + " |"
    rule = "|---" + "|--:" * (len(head) - 1) + "|"
    return "\n".join([line, rule, *("| " + " | ".join(row) + " |" for row in rows)])


def sizes() -> str:
    """What is exchanged in a step, and where the base fits."""
    head = [
        "base",
        *(f"MB a step, r {rank}" for rank in RANKS),
        "base in bfloat16, GB",
        "in NF4, GB",
    ]
    return table(
        head,
        [
            [
                base.name,
                *(f"{4 * base.adapter(rank) / 1e6:,.0f}" for rank in RANKS),
                f"{2 * base.parameters / GB:.0f}",
                f"{(base.linear * 4.127 / 8 + 4 * base.vocabulary * base.hidden) / GB:.0f}",
            ]
            for base in BASES
        ],
    )


def speed_ups(tokens: int) -> str:
    """The speed-up of data parallel at rank 8."""
    head = [f"{tokens:,} tokens a step", *(f"{count} GPUs" for count in COUNTS)]
    return table(
        head,
        [
            [
                f"{base.name}, {link}",
                *(f"{speed_up(base, 8, tokens, count, bits):.1f}" for count in COUNTS),
            ]
            for base in (BASES[0], BASES[-1])
            for link, bits in LINKS.items()
        ],
    )


def limits() -> str:
    """The most GPUs of which each does at least half of what one alone does."""
    rows = []
    for base in BASES:
        for tokens in (1_280, 32_768):
            cells = []
            for bits in LINKS.values():
                counts = [2**k for k in range(10)]
                pays = [n for n in counts if speed_up(base, 8, tokens, n, bits) >= n / 2]
                cells.append(str(max(pays)))
            rows.append([f"{base.name}, {tokens:,} tokens a step", *cells])
    return table(["", *LINKS], rows)


def shards() -> str:
    """The GPUs over which a base that is spread must be spread, and what a step then moves."""
    rows = []
    for base in BASES:
        size = 2 * base.parameters
        needed = [math.ceil(size / (0.7 * card * GB)) for card in (24, 80)]
        # Each micro-batch gathers the base in both passes; a pipeline hands on hidden states.
        cut = 2 * 2 * 8192 * base.hidden
        rows.append(
            [
                base.name,
                *map(str, needed),
                f"{2 * size / GB:,.0f} GB",
                f"{base.seconds(8192, 8):.2g} s",
                *(f"{2 * size * 8 / LINKS[link]:.2g} s" for link in ("100 Gb/s", "NVLink")),
                f"{cut / 1e6:,.0f} MB",
            ]
        )
    head = ["base in bfloat16", "GPUs of 24 GB", "of 80 GB", "gathered by each, sharded"]
    head += ["arithmetic", "at 100 Gb/s", "NVLink", "a cut of a pipeline"]
    return table(head, rows)


def main() -> None:
    for part in (sizes(), speed_ups(1_280), speed_ups(32_768), limits(), shards()):
        print(part, end="\n\n")


if __name__ == "__main__":
    main()
