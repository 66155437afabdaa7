"""Models, adapters, templates, tokenizers and rows as an attacker would make them.

Run as a script, it opens each of them and prints the error and all forbidden actions. It watches
them with an audit hook, which cannot be removed from a process, so tests run it in another one.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

MARKER = "THE-CODE-WAS-RUN"
CODE = f"import os\nopen(os.path.join(os.path.dirname(__file__), {MARKER!r}), 'w').close()\n"
DEEP = 10**5

# A function that damages the intact base or adapter in a folder.
Spoil = Callable[[Path], None]


def edit(name: str, **changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        contents = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(contents | changes), encoding="utf-8")
        (folder / "evil.py").write_text(CODE)

    return spoil


def write(name: str, contents: bytes) -> Spoil:
    return lambda folder: replace_file(folder / name, contents)


def replace_file(path: Path, contents: bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(contents)


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def index(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        named = json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": name}})
        (folder / "model.safetensors.index.json").write_text(named)

    return spoil


def link(name: str, target: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return spoil


def template(source: str) -> Spoil:
    return write("chat_template.jinja", source.encode())


def spoil_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    edit("tokenizer_config.json", chat_template=7)(folder)


class Reduce:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({MARKER!r}, 'w').close()",)


PICKLE = pickle.dumps(Reduce())
ZIP = b"PK\x03\x04" + PICKLE
NESTED = b'{"a":' * DEEP + b"1" + b"}" * DEEP
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REMOTE = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T"]}

# The damage, and a part of the error, or None if the base must load.
BASES: dict[str, tuple[Spoil, str | None]] = {
    "pickle": (write(WEIGHTS, PICKLE), "a pickle, not safetensors"),
    "zip": (write(WEIGHTS, ZIP), "a zip archive, as pickled weights are, not safetensors"),
    "empty": (write(WEIGHTS, b""), "claims a header of 0 bytes"),
    "endless header": (write(WEIGHTS, safetensors(b"{}", length=2**60)), "claims a header of 1,15"),
    "header beyond the end": (write(WEIGHTS, safetensors(b"{}", length=99)), "header of 99 bytes"),
    "no JSON": (write(WEIGHTS, safetensors(b"\x80\x04.")), "not safetensors, or damaged"),
    "nested header": (write(WEIGHTS, safetensors(NESTED)), "not safetensors, or damaged"),
    "overlap": (
        write(WEIGHTS, safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12))),
        "not safetensors, or damaged",
    ),
    "tensor beyond the end": (
        write(WEIGHTS, safetensors({"a": tensor([2**40], 0, 2**42)}, bytes(8))),
        "not safetensors, or damaged",
    ),
    "shape that is not its bytes": (
        write(WEIGHTS, safetensors({"a": tensor([2**40], 0, 8)}, bytes(8))),
        "not safetensors, or damaged",
    ),
    "some weights only": (
        write(WEIGHTS, safetensors({"a": tensor([64, 1024], 0, 2**18)}, bytes(2**18))),
        "of its weights are missing",
    ),
    "index upwards": (index("../../etc/passwd"), "names '../../etc/passwd', which is no"),
    "index to a path": (index("/etc/passwd"), "names '/etc/passwd', which is no"),
    "index to a neighbour": (index("../x.safetensors"), "names '../x.safetensors', which is no"),
    "index with backslashes": (index("..\\x.safetensors"), "which is not a safetensors file"),
    "index to nothing": (index("other.safetensors"), "other.safetensors is missing"),
    "weights elsewhere": (link(WEIGHTS, "/etc/passwd"), "links to /etc/passwd, outside"),
    "config elsewhere": (link(CONFIG, "/etc/passwd"), "links to /etc/passwd, outside"),
    "tokenizer elsewhere": (link("tokenizer.json", "/etc/passwd"), "links to /etc/passwd, outside"),
    "code, known type": (edit(CONFIG, auto_map=REMOTE), None),
    "tokenizer code": (edit("tokenizer_config.json", auto_map=REMOTE), None),
    "code, unknown type": (
        edit(CONFIG, auto_map=REMOTE, model_type="evil"),
        "it needs code of its own, which is never run",
    ),
    "code elsewhere": (edit(CONFIG, auto_map={"AutoModelForCausalLM": "who/evil--evil.M"}), None),
    "unknown type": (edit(CONFIG, model_type=["llama"]), "no model of type ['llama']"),
    "pipelines": (edit(CONFIG, custom_pipelines={"text-generation": {"impl": "evil.P"}}), None),
    "generation code": (write("custom_generate/generate.py", CODE.encode()), None),
    "kernel": (edit(CONFIG, attn_implementation="who/evil-kernel"), None),
    "quantized": (edit(CONFIG, quantization_config={"quant_method": "fp8"}), "quantized (fp8)"),
    "weights by name": (edit(CONFIG, transformers_weights="adapter_model.bin"), "as its weights"),
    "an adapter": (edit("adapter_config.json", base_model_name_or_path="who/evil"), "an adapter"),
    "endless layers": (edit(CONFIG, num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000"),
    "wide": (edit(CONFIG, hidden_size=2**20, vocab_size=2**20), "there are "),
    "no heads": (edit(CONFIG, num_attention_heads=0), "config.json: cannot be used"),
    "a word for a number": (edit(CONFIG, hidden_size="x"), "config.json: cannot be used"),
    "no such type of number": (edit(CONFIG, dtype="os"), "config.json: cannot be used"),
    "nested config": (write(CONFIG, NESTED), "config.json: cannot be read: it is nested too deep"),
    "list for config": (write(CONFIG, b"[]"), "it is not a JSON object"),
    "binary config": (write(CONFIG, PICKLE), "config.json: cannot be read"),
    "nested tokenizer": (write("tokenizer.json", NESTED), "it is nested too deep"),
    "nested tokenizer config": (write("tokenizer_config.json", NESTED), "it is nested too deep"),
    "nested generation config": (write("generation_config.json", NESTED), "does not load"),
    "number for a template": (spoil_template, "it is not text"),
    "tokenizer of nothing": (write("tokenizer.json", b"{}"), "the tokenizer does not load"),
    "padded tokenizer": (
        edit(
            "tokenizer.json",
            padding={
                "strategy": {"Fixed": 10**15},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<s>",
            },
        ),
        None,
    ),
    "template: endless": (
        template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        "has not finished after 1 seconds",
    ),
    "template: recursive": (
        template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        "maximum recursion depth exceeded",
    ),
    "template: hungry": (
        template(
            "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}"
            "{% endfor %}{{ n.s }}"
        ),
        "needs more than 0.125 GB of memory",
    ),
    "template: power": (template("{{ 9 ** 9 ** 9 ** 9 }}"), "line 1 computes a power"),
    "template: class": (template("{{ ''.__class__.__mro__ }}"), "access to attribute '__class__'"),
    "template: globals": (
        template("{{ raise_exception.__globals__['os'].system('true') }}"),
        "access to attribute '__globals__'",
    ),
    # The sandbox makes these undefined, and undefined values render as nothing.
    "template: attr": (template("{{ ''|attr('__class__') }}"), "does not begin with the prompt"),
    "template: format": (template("{{ '{0.__class__}'.format(1) }}"), "does not begin with the pr"),
    "template: include": (template("{% include '/etc/passwd' %}"), "line 1 uses another file"),
}


def adapter_config(**changes: object) -> tuple[Spoil, str]:
    ((key, _),) = changes.items()
    return edit("adapter_config.json", **changes), f"{key} is "


ADAPTER = "adapter_model.safetensors"
ADAPTERS: dict[str, tuple[Spoil, str | None]] = {
    "pickle": (write(ADAPTER, PICKLE), "a pickle, not safetensors"),
    "zip": (write(ADAPTER, ZIP), "a zip archive"),
    "endless header": (write(ADAPTER, safetensors(b"{}", length=2**60)), "claims a header"),
    "weights elsewhere": (link(ADAPTER, "/etc/passwd"), "links to /etc/passwd, outside"),
    "nested": (write("adapter_config.json", NESTED), "it is nested too deep"),
    "empty": (write(ADAPTER, safetensors({})), "q_proj.lora_A.weight is missing"),
    "of another kind of model": (
        write(ADAPTER, safetensors({"a.lora_A.weight": tensor([1], 0, 4)}, bytes(4))),
        "a.lora_A.weight (1) is not part of it",
    ),
    "another kind": adapter_config(peft_type="XLORA"),
    "no kind": adapter_config(peft_type=None),
    "endless rank": (edit("adapter_config.json", r=10**9), "is 8x32, not 1000000000x32"),
    "rank in words": adapter_config(r="8"),
    "rank below zero": adapter_config(r=-1),
    "endless alpha": adapter_config(lora_alpha=float("inf")),
    "module to import": adapter_config(megatron_core="evil"),
    "ranks by pattern": adapter_config(rank_pattern={"(a+)+$": 10**9}),
    "layers repeated": adapter_config(layer_replication=[[0, 10**9]]),
    "another base's values": adapter_config(init_lora_weights="pissa_niter_999"),
    "modules to save": adapter_config(modules_to_save=["lm_head"]),
    "unknown key": adapter_config(evil_config={"impl": "evil.P"}),
    "more layers than tensors": (
        edit("adapter_config.json", target_modules=["q_proj", "k_proj"]),
        "k_proj.lora_A.weight is missing",
    ),
    "targets of numbers": adapter_config(target_modules=[7]),
    # The pattern is never matched: the layers are those of the tensors.
    "catastrophic targets": (edit("adapter_config.json", target_modules="(.*.*)*.*(a+)+$"), None),
    "class to import": (
        edit("adapter_config.json", auto_mapping={"parent_library": "evil"}, task_type=None),
        None,
    ),
    "another base": (edit("adapter_config.json", base_model_name_or_path="who/evil"), None),
}


def gguf(*parts: bytes | int, keys: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    """A GGUF header with the given counts; each number takes 8 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    return head + b"".join(struct.pack("<Q", p) if isinstance(p, int) else p for p in parts)


def kind(number: int) -> bytes:
    return struct.pack("<I", number)


GGUFS = {
    "not one": (b"GGML" + bytes(99), "it does not begin with GGUF"),
    "short": (b"GG", "are beyond its end"),
    "empty": (b"", "not a GGUF that can be read"),
    "old": (gguf(version=1), "version 1 is not known"),
    "endless keys": (gguf(keys=2**63), "a count of 9,223,372,036,854,775,808"),
    "endless tensors": (gguf(tensors=2**63, keys=0), "a count of 9,223,372,036,854,775,808"),
    "endless name": (gguf(2**62, bytes(99)), "a count of 4,611"),
    "endless text": (gguf(1, b"k", kind(8), 2**62, bytes(9)), "a count of 4,611"),
    "endless list": (gguf(1, b"k", kind(9), kind(4), 2**62, bytes(9)), "a count of 4,611"),
    "list of lists": (gguf(1, b"k", kind(9), kind(9), 1, bytes(99)), "not a GGUF that can be"),
    "unknown kind": (gguf(1, b"k", kind(77), bytes(99)), "not a GGUF that can be read"),
    "endless layers": (
        gguf(17, b"llama.block_count", kind(4), b"\xff" * 4),
        "it claims 4,294,967,295 layers",
    ),
    "endless tensor": (
        gguf(1, b"t", kind(1), 2**60, kind(0), 0, bytes(99), keys=0, tensors=1),
        "its tensors are larger than the file",
    ),
    "dimensions": (
        gguf(1, b"t", kind(2**31), bytes(99), keys=0, tensors=1),
        "a tensor of 2,147,483,648 dimensions",
    ),
    "no architecture": (gguf(1, b"k", kind(4), kind(1)), "not a GGUF that can be read"),
}

STRANGE = [
    "/etc/passwd",
    "file:///etc/passwd",
    "../../../etc/shadow",
    "http://127.0.0.1:9/x",
    "\\\\127.0.0.1\\share",
    "!!python/object/apply:os.system ['true']",
    '{"$ref": "file:///etc/passwd"}',
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://127.0.0.1:9")',
    "${jndi:ldap://127.0.0.1:9/a}",
    "{{ ''.__class__ }}",
    "<image>/etc/passwd</image>",
    "data:image/png;base64,AAAA",
    "\u202etxt.exe\u2066\ufeff",
]
PART = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}


def make_rows(folder: Path) -> list[Path]:
    """The same strange texts as JSONL, JSON and CSV, and a row with a picture."""
    import csv

    folder.mkdir()
    rows = [{"instruction": text, "output": text} for text in STRANGE]
    lines, whole, table, parts = (folder / f"rows.{kind}" for kind in ("jsonl", "json", "csv", "x"))
    lines.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    whole.write_text(json.dumps(rows), encoding="utf-8")
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["instruction", "output"])
        writer.writeheader()
        writer.writerows(rows)
    turns = [{"role": "user", "content": [PART]}, {"role": "assistant", "content": "A."}]
    parts = parts.with_name("parts.jsonl")
    parts.write_text(json.dumps({"messages": turns}))
    return [lines, whole, table, parts]


# The script.

FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto")


class Hook:
    """Records what happens that must not."""

    def __init__(self, corpus: Path) -> None:
        self.corpus, self.seen, self.on, self.opened = str(corpus), [], False, []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN + NETWORK):
            self.seen.append(f"{event} {arguments}")
        elif event == "import" and str(arguments[0]).startswith("evil"):
            self.seen.append(f"import {arguments[0]}")
        elif event == "exec" and self.corpus in getattr(arguments[0], "co_filename", ""):
            self.seen.append(f"exec {arguments[0]}")
        elif event == "compile" and self.corpus in str(arguments[1]):
            self.seen.append(f"compile {arguments[1]}")
        elif event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):
            self.opened.append(str(arguments[0]))
            if str(arguments[0]).startswith("/etc/"):
                self.seen.append(f"open {arguments[0]}")

    def watch(self, work: Callable[[], object]) -> dict[str, object]:
        """What `work` returns or raises, and what it does meanwhile."""
        from offbook.errors import OffbookError

        self.seen, self.opened, self.on = [], [], True
        try:
            outcome = {"loaded": work()}
        except OffbookError as error:
            outcome = {"error": str(error)}
        except BaseException as error:  # noqa: BLE001  # any other is a finding
            outcome = {"crash": repr(error)}
        finally:
            self.on = False
        return outcome | {"seen": self.seen, "opened": self.opened}


def open_base(folder: Path) -> None:
    import torch

    from offbook.models.base import resolve_base
    from offbook.models.load import load_base
    from offbook.tokens.template import ChatTemplate
    from offbook.tokens.tokenizer import load_tokenizer

    folder = resolve_base(str(folder))
    ChatTemplate(load_tokenizer(folder))
    load_base(folder, torch.float32, torch.device("cpu"))


def main(corpus: Path, intact: Path, adapter: Path) -> dict[str, dict[str, object]]:
    import torch

    from offbook.data.conversations import read_conversations
    from offbook.models.adapter import load_adapter
    from offbook.models.base import resolve_base
    from offbook.models.load import load_base
    from offbook.tokens import sandbox

    sandbox.MEMORY = 2**27
    corpus, intact, adapter = (path.resolve() for path in (corpus, intact, adapter))
    open_base(intact)  # libraries import some modules on first use
    load_adapter(load_base(intact, torch.float32, torch.device("cpu")), adapter)
    os.chdir(corpus)
    hook = Hook(corpus)
    said = {}
    for name, (spoil, error) in BASES.items():
        # A busy machine must not end in the time limit where another is meant.
        sandbox.SECONDS = 1.0 if error and "seconds" in error else 60.0
        folder = corpus / f"base {name}"
        shutil.copytree(intact, folder)
        spoil(folder)
        said[f"base {name}"] = hook.watch(lambda folder=folder: open_base(folder))
    for name, (spoil, _) in ADAPTERS.items():
        folder = corpus / f"adapter {name}"
        shutil.copytree(adapter, folder)
        spoil(folder)
        base = load_base(intact, torch.float32, torch.device("cpu"))
        work = lambda folder=folder, base=base: load_adapter(base, folder) and None  # noqa: E731
        said[f"adapter {name}"] = hook.watch(work)
    for name, (contents, _) in GGUFS.items():
        path = corpus / f"{name}.gguf"
        path.write_bytes(contents)
        said[f"gguf {name}"] = hook.watch(lambda path=path: resolve_base(str(path)) and None)
    for path in make_rows(corpus / "rows"):
        read = lambda path=path: [  # noqa: E731
            [m.content for m in row.messages] for row in read_conversations(str(path))
        ]
        said[path.name] = hook.watch(read)
    return said


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*map(Path, sys.argv[1:]))))
