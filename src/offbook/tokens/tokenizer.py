"""Load a tokenizer, and prove that it is not corrupted.

A tokenizer that loads without an error may still tokenize wrongly: transformers 5.6 and 5.20 build
the class that DeepSeek-LLM names in its config, and lose every space of a text. So it is loaded
from `tokenizer.json` alone, whatever class is named, and must then agree with that file on a probe
set, token by token.
"""

from __future__ import annotations

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


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder, after it has passed `prove`.

    Raises:
        ModelError: when there is none, or it disagrees with its own `tokenizer.json`.
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
    # Saved with some tokenizers, and left over from other uses: they would cut rows unseen.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    prove(tokenizer, raw)
    return tokenizer


def prove(tokenizer: PreTrainedTokenizerBase, raw: Path) -> None:
    """Compare a loaded tokenizer with the `tokenizer.json` it was loaded from.

    Raises:
        ModelError: naming the first text on which they differ.
    """
    with _refusing(raw.parent):
        reference = Tokenizer.from_file(str(raw))
        reference.no_truncation()
        reference.no_padding()
        wanted = [reference.encode(probe, add_special_tokens=False).ids for probe in PROBES]
    for probe, want in zip(PROBES, wanted, strict=True):
        got = tokenizer.encode(probe, add_special_tokens=False)
        if got != want:
            seen = tokenizer.decode(got)
            raise ModelError(
                f"the tokenizer differs from its tokenizer.json: {probe!r} reads back as {seen!r}",
                where=str(raw.parent),
                fix="install another version of transformers",
            )
        if tokenizer.decode(want, clean_up_tokenization_spaces=False) != reference.decode(want):
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
