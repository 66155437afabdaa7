"""Text to token ids and back; control tokens come from the chat template alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # code points that Unicode gives no meaning
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


class TextEncoder:
    """Encodes text with a tokenizer, and decodes ids.

    A row may contain the text of a control token, such as "</s>". Encoded as it is, that text
    would become the token. So it is masked before the template is rendered: each such text becomes
    one unused character, and every control token of the rendered text is the template's own.

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
        """Encode many texts at once, on all cores; the text of a control token becomes its id."""
        self._backend.encode_special_tokens = False
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def token_starts(self, text: str) -> list[int]:
        """The position in a text at which each of its tokens begins."""
        return [start for start, _ in self._backend.encode(text, add_special_tokens=False).offsets]

    def control_in(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among ids."""
        return [index for index in ids if index in self._control_ids]

    def mask(self, texts: Sequence[str]) -> tuple[list[str], Mapping[int, str]]:
        """Replace the text of control tokens by unused characters.

        Returns:
            The masked texts, and the text that each unused code point stands for.
        """
        together = "".join(texts)
        unused = (chr(code) for code in PRIVATE_USE if chr(code) not in together)
        stand_ins = dict(zip(self.control, unused, strict=False))
        masked = [self._pattern.sub(lambda match: stand_ins[match[0]], text) for text in texts]
        return masked, {ord(stand_in): token for token, stand_in in stand_ins.items()}

    def encode_masked(self, text: str, originals: Mapping[int, str]) -> list[int]:
        """Encode a text rendered around masked ones, whose originals become ordinary tokens.

        The text is encoded in pieces, cut at its control tokens, as a tokenizer does by itself.
        """
        ids: list[int] = []
        for piece in self._pattern.split(text):
            if piece in self.control:
                ids.append(self.control[piece])
            elif piece:
                self._backend.encode_special_tokens = True
                plain = piece.translate(dict(originals))
                ids += self._backend.encode(plain, add_special_tokens=False).ids
        self._backend.encode_special_tokens = False
        return ids

    def decode_stream(self, ids: Iterable[int], stop_id: int) -> Iterator[str]:
        """Yield the text of ids before the stop token, each piece as soon as it is complete.

        A character may take several tokens; it is yielded with the last of them. If the ids end
        inside a character, without a stop token, that character is left out.
        """
        # The tokens of the last piece are decoded again before the new ones: in some tokenizers,
        # a space is decoded only where something comes before it.
        previous: list[int] = []
        new: list[int] = []
        piece = ""
        for index in ids:
            if index == stop_id:
                yield piece
                return
            new.append(index)
            piece = self._decode(previous + new)[len(self._decode(previous)) :]
            if not piece.endswith(INCOMPLETE):
                yield piece
                previous, new, piece = new, [], ""
        yield piece.rstrip(INCOMPLETE)

    def _decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=False))
