"""Rendered chats to token ids, with control tokens only where the chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # code points that no text gives a meaning to


class TextEncoder:
    """A tokenizer's text-to-ids half.

    A row may spell a control token, such as "</s>". Encoded with its surroundings the text would
    become that token. So it is masked before the template is rendered around it: each such text is
    one unused character, and what control tokens are left are the template's own.

    Attributes:
        control: the id of each control token, by its text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = tokenizer.added_tokens_decoder
        self.control = {str(token): index for index, token in added.items() if token.special}
        self._control_ids = frozenset(self.control.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self._pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts at once, on every core; control tokens are recognized."""
        self._backend.encode_special_tokens = False
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def starts(self, text: str) -> list[int]:
        """Where in a text each of its tokens begins."""
        return [start for start, _ in self._backend.encode(text, add_special_tokens=False).offsets]

    def control_in(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among ids."""
        return [index for index in ids if index in self._control_ids]

    def mask(self, texts: Sequence[str]) -> tuple[list[str], Mapping[int, str]]:
        """The texts with each control token they spell as one character, and what those mean."""
        together = "".join(texts)
        unused = (chr(code) for code in PRIVATE_USE if chr(code) not in together)
        stand_ins = dict(zip(self.control, unused, strict=False))
        masked = [self._pattern.sub(lambda hit: stand_ins[hit[0]], text) for text in texts]
        return masked, {ord(stand_in): token for token, stand_in in stand_ins.items()}

    def encode_masked(self, text: str, meanings: Mapping[int, str]) -> list[int]:
        """Encode a text around masked ones, which become ordinary tokens.

        A tokenizer treats what lies between control tokens piece by piece; so does this.
        """
        ids: list[int] = []
        for piece in self._pattern.split(text):
            if piece in self.control:
                ids.append(self.control[piece])
            elif piece:
                self._backend.encode_special_tokens = True
                plain = piece.translate(dict(meanings))
                ids += self._backend.encode(plain, add_special_tokens=False).ids
        self._backend.encode_special_tokens = False
        return ids
