"""Load a tokenizer, and prove that it works as its `tokenizer.json` says.

A tokenizer that loads without an error may still tokenize wrongly: transformers 5.6 and 5.20 build
the class that DeepSeek-LLM's config names, and it removes every space. So tokenizers are loaded
from `tokenizer.json` alone, whatever class the config names, and then compared with that file on a
few probe texts, token by token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from offbook.errors import ModelError
from offbook.files.untrusted import read_json
from offbook.libraries import quiet_transformers

CONFIG_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
PROBES = (
    "User: Hello world, it's 3.14!\n\nAssistant: Yes.",
    "家父是大理寺少卿甄远道。\n臣妾  谢皇上！",
    "  leading,   inner and trailing space  ",
    "def f(x):\n\treturn x**2  # 注释\r\n",
    "naïve Ünïcödé “quotes” — 🙂👩‍👩‍👧 日本語 العربية 한국어",
    "1234567890 0x1F e=mc² ½",
)


def load_tokenizer(folder: str | Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer in a model folder, and `prove` it.

    Args:
        folder: of the model.
        template: the text of a chat template to use in place of its own.

    Raises:
        ModelError: when there is none, or it differs from its `tokenizer.json`.
    """
    folder = Path(folder)
    raw = folder / "tokenizer.json"
    if not raw.is_file():
        raise ModelError(
            "no tokenizer.json here",
            where=str(folder),
            fix="use a model that ships one, or save it once with AutoTokenizer.save_pretrained",
        )
    for name in CONFIG_FILES:
        if (folder / name).exists():
            read_json(folder / name, ModelError)
    with _refusing(folder), quiet_transformers():
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    # Some tokenizers are saved with these settings; they would truncate rows silently.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    prove(tokenizer, raw)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def tokenizer_files(
    tokenizer: PreTrainedTokenizerBase, folder: Path, chat_template: str
) -> Iterator[tuple[str, bytes]]:
    """The files with which other programs tokenize as offbook does, for a folder of their own.

    `tokenizer.json` is the base's. The configuration names the class that takes this file as it is:
    others build a tokenizer from it that may differ (see above). It has the chat template, too, so
    that releases of transformers find it that do not know `chat_template.jinja`.

    Args:
        tokenizer: loaded from `folder`.
        folder: of the base.
        chat_template: the source of the template that training used.

    Returns:
        The name and content of each file.
    """
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file, ModelError) if config_file.exists() else {}
    for key in ("auto_map", "chat_template"):  # code, and perhaps a list of templates
        config.pop(key, None)
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",  # known to every version of transformers
        "chat_template": chat_template,
    }
    for role in ("bos", "eos", "unk", "pad"):
        if token := getattr(tokenizer, f"{role}_token"):
            config[f"{role}_token"] = token
    yield "tokenizer.json", (folder / "tokenizer.json").read_bytes()
    yield "tokenizer_config.json", json.dumps(config, indent=2, ensure_ascii=False).encode()


def prove(tokenizer: PreTrainedTokenizerBase, raw: Path) -> None:
    """Compare a loaded tokenizer with the `tokenizer.json` it was loaded from.

    Raises:
        ModelError: naming the first text on which they differ.
    """
    with _refusing(raw.parent):
        reference = Tokenizer.from_file(str(raw))
        reference.no_truncation()
        reference.no_padding()
        expected = [reference.encode(probe, add_special_tokens=False).ids for probe in PROBES]
    for probe, ids in zip(PROBES, expected, strict=True):
        got = tokenizer.encode(probe, add_special_tokens=False)
        if got != ids:
            seen = tokenizer.decode(got)
            raise ModelError(
                f"the tokenizer differs from its tokenizer.json: {probe!r} reads back as {seen!r}",
                where=str(raw.parent),
                fix="install another version of transformers",
            )
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != reference.decode(ids):
            raise ModelError(
                f"the tokenizer differs from its tokenizer.json in decoding {probe!r}",
                where=str(raw.parent),
                fix="install another version of transformers",
            )


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"the tokenizer does not load: {error}", where=str(folder)) from error
