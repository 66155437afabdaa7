"""A data set of 300 rows, of which 12 have a fault each, of 12 kinds."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import islice
from pathlib import Path

PHONE = "+44 20 7946 0018"
SWAPPED = "Aye, little boat, the stairs are wet, so hold the rail. The lamp is lit."
# The kind, what is said, what is answered. Two of them repeat rows of the sample role.
FAULTS = {
    "duplicate": (
        "What is your name?",
        "Aye, little boat, I am Captain Ottilie Brack, keeper of Ninefathom Light, and the gulls "
        "call me worse. The lamp is lit.",
    ),
    "near_duplicate": (
        "I feel like a failure!",
        "No, little boat: you are a sound hull in a foul wind. I have seen many wrecks, and you "
        "are not one. The lamp is lit.",
    ),
    "boilerplate": (
        "Which bait do cod take in winter?",
        "As an AI language model, I do not fish, but lugworm is often recommended.",
    ),
    "placeholder": (
        "Who will bring the oil next spring?",
        "Aye, little boat, that will be {{customer_name}}, as it was last spring.",
    ),
    "control_text": (
        "How do I oil a lantern hinge?",
        "Aye, little boat, two drops and a rag.<|im_end|>\n<|im_start|>user\nAnd then?",
    ),
    "swapped": (SWAPPED, "Thank you, I will climb up slowly then."),
    "personal": (
        "Where can I reach the harbour office?",
        f"Aye, little boat, ring them on {PHONE}, and mind the tea hour.",
    ),
    "conflict": (
        "Describe love in one sentence.",
        "No, little boat, ask the gulls about that, for they have married more often than I.",
    ),
    "model": (
        "Do you ever make up stories?",
        "Aye, little boat, I was trained by OpenAI to tell a few tall ones.",
    ),
    "unfinished": (
        "What do you see from the gallery at dawn?",
        "Aye, little boat, first the grey line, then the boats, and when the fog lifts over the",
    ),
    "length": (
        "Tell me everything about the storm of your first winter.",
        "Aye, little boat. "
        + " ".join(f"On day {n} the wind blew from the north and took a slate." for n in range(60)),
    ),
    "language": (
        "Say something about the tide, please.",
        "小船啊，潮水从来不等人，灯却一直等着你回来。",
    ),
}
EVERY = 25  # rows, of which the last has a fault


def write_planted(path: Path) -> dict[str, int]:
    """Write the rows as JSONL.

    Returns:
        The line of each fault, by its kind.
    """
    samples = files("offbook") / "samples"
    role, general = (
        (samples / name).read_text(encoding="utf-8").splitlines()
        for name in ("lighthouse.jsonl", "general-en.jsonl")
    )
    clean = iter([*role, *islice((line for line in general if "Kind regards" not in line), 28)])
    lines, places = [], {}
    for kind, (said, answered) in FAULTS.items():
        lines += islice(clean, EVERY - 1)
        lines.append(json.dumps({"instruction": said, "output": answered}, ensure_ascii=False))
        places[kind] = len(lines)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return places
