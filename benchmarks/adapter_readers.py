"""Do programs that read an adapter give the replies of `offbook chat`? Greedy, in float32.

    python benchmarks/adapter_readers.py runs/demo --python /path/to/other/python

reads the run's adapter with the PEFT of this interpreter and of each `--python` (such as one with
PEFT 0.10 and transformers 4.40): onto its base, by `AutoPeftModelForCausalLM` without network, and
merged. A base that is named by its hub id is put into a hub cache of its own for that. Prints, for
each program, how many replies have the same tokens, and exits with 8 if one has not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

QUESTIONS = (
    "Who are you?",
    "What do you do when the fog comes in?",
    "Tell me about the sea.",
    "What is 12 times 12?",
    "Good night.",
)
READER = """
import json, sys, torch, peft, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

transformers.utils.logging.set_verbosity_error()
base, adapter, stop, length, questions = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(adapter)
options = {"torch_dtype": torch.float32}

def load():
    model = AutoModelForCausalLM.from_pretrained(base, **options)
    return peft.PeftModel.from_pretrained(model, adapter)

def replies(model):
    for question in questions:
        turns = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=stop,
            max_new_tokens=length, pad_token_id=stop,
        )
        yield out[0].tolist()

ways = {
    "PeftModel": load,
    "AutoPeft": lambda: peft.AutoPeftModelForCausalLM.from_pretrained(adapter, **options),
    "merged": lambda: load().merge_and_unload(),
}
found = {}
for way, make in ways.items():
    with torch.no_grad():
        found[way] = list(replies(make().eval()))
version = f"PEFT {peft.__version__}, transformers {transformers.__version__}"
print(json.dumps({"version": version, "found": found}))
"""


def expected(run: Path, length: int) -> tuple[Path, Path, int, list[list[int]]]:
    """The base and adapter of a run, its stop token, and the ids of each chat by offbook itself."""
    import torch

    from offbook.data.messages import Message
    from offbook.models.adapter import load_adapter
    from offbook.models.load import load_base
    from offbook.runs.trained import open_run

    opened = open_run(run, print)
    device = torch.device("cpu")
    model = load_adapter(load_base(opened.base, torch.float32, device), opened.adapter)
    chats = []
    for question in QUESTIONS:
        ids = opened.template.build_prompt([Message("user", question)])
        for _ in range(length):  # without a cache of keys and values, the plainest way
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == opened.template.stop_id:
                break
        chats.append(ids)
    return opened.base, opened.adapter, opened.template.stop_id, chats


def hub_cache(folder: Path, name: str, base: Path) -> None:
    """A hub cache in which a model is the files of `base`."""
    repo = folder / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for file in base.iterdir():
        (snapshot / file.name).symlink_to(file)


def main() -> None:
    """Compare all programs with offbook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--python", type=Path, action="append", default=[])
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    base, adapter, stop, chats = expected(options.run, options.tokens)
    wrong = 0
    with tempfile.TemporaryDirectory() as cache:
        name = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        if not Path(name).is_absolute():
            hub_cache(Path(cache), name, base)
        job = json.dumps([str(base), str(adapter), stop, options.tokens, QUESTIONS])
        environment = {**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"}
        for python in (Path(sys.executable), *options.python):
            done = subprocess.run(
                [python, "-W", "ignore", "-c", READER, job],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = json.loads(done.stdout.splitlines()[-1])
            for way, found in result["found"].items():
                same = sum(a == b for a, b in zip(chats, found, strict=True))
                print(f"{result['version']}, {way}: {same} of {len(chats)} replies the same")
                wrong += len(chats) - same
    sys.exit(8 if wrong else 0)


if __name__ == "__main__":
    main()
