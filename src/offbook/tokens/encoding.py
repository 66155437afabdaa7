"""Text to token ids and back; control tokens come from the chat template alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from offbook.data.messages import Message
from offbook.errors import DataError
from offbook.tokens.reasoning import BLOCK, TAGS, has_reasoning

PRIVATE_USE = range(0xF0000, 0xFFFFE)  # code points that Unicode gives no meaning
SEPARATOR = "\U0010fffd"  # stands for a control token while the text around it is encoded
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what the bytes of half a character decode to


class TextEncoder:
    """Encodes text with a tokenizer, and decodes ids.

    A row may contain the text of a control token, such as "</s>". Encoded as it is, that text
    would become the token. So it is masked before the template is rendered: each such text becomes
    one unused character, and every control token of the rendered text is the template's own.

    Control tokens are what a chat template writes: the tokens with the flag "special", and any
    other added token that is in the template's source or output. Added tokens that are only words
    or white space are text.

    Args:
        tokenizer: encodes and decodes.
        written: text that its chat template has written.

    Attributes:
        control: the id of each control token, by its text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str = "") -> None:
        self._backend = tokenizer.backend_tokenizer
        template = f"{tokenizer.chat_template or ''}{written}"
        self._reasons = any(tag in template for tag in TAGS)
        self._added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}

        def is_control(text: str) -> bool:
            known = text in template or (self._reasons and text in TAGS)
            return known and not text.replace("_", "").isalnum() and bool(text.strip())

        self.control = {
            str(token): index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or is_control(str(token))
        }
        self._control_ids = frozenset(self.control.values())
        longest_first = sorted(self.control, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        # A template may look for the tags of reasoning also where they are no tokens.
        masked = {*self.control, *(TAGS if self._reasons else ())}
        self._masked = sorted(masked, key=len, reverse=True)
        self._mask_pattern = re.compile("|".join(map(re.escape, self._masked)) or "(?!)")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode many texts at once, on all cores; the text of a control token becomes its id."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def token_starts(self, text: str) -> list[int]:
        """The position in a text at which each of its tokens begins."""
        return [start for start, _ in self._backend.encode(text, add_special_tokens=False).offsets]

    def control_in(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among ids."""
        return [index for index in ids if index in self._control_ids]

    def control_positions(self, ids: Iterable[int]) -> list[int]:
        """Where control tokens are among ids."""
        return [position for position, index in enumerate(ids) if index in self._control_ids]

    def spells_control(self, messages: Iterable[Message]) -> bool:
        """Whether messages contain the text of a control token."""
        return any(self._mask_pattern.search(text) for m in messages for _, text in _pieces(m))

    def mask(self, messages: Sequence[Message]) -> tuple[list[str], Mapping[int, str]]:
        """Replace the text of control tokens by unused characters.

        The tags of a block of reasoning at the beginning of a reply are kept.

        Returns:
            The masked texts, and the text that each unused code point stands for.

        Raises:
            DataError: when they contain `SEPARATOR`.
        """
        together = "".join(message.content for message in messages)
        if SEPARATOR in together:
            raise DataError("it contains U+10FFFD and spells a control token")
        unused = (chr(code) for code in PRIVATE_USE if chr(code) not in together)
        stand_ins = dict(zip(self._masked, unused, strict=False))
        masked = [
            "".join(
                tag + self._mask_pattern.sub(lambda match: stand_ins[match[0]], text)
                for tag, text in _pieces(message)
            )
            for message in messages
        ]
        return masked, {ord(stand_in): token for token, stand_in in stand_ins.items()}

    def encode_masked(self, text: str, originals: Mapping[int, str]) -> list[int]:
        """Encode a text rendered around masked ones, whose originals become ordinary tokens.

        Each control token of the text is replaced by a separator, and then its id by the token's.
        """
        pieces = self.pattern.split(text)
        control = pieces[1::2]
        for position, token in enumerate(control):
            if self._added[token].rstrip:
                pieces[2 * position + 2] = pieces[2 * position + 2].lstrip()
            if self._added[token].lstrip:
                pieces[2 * position] = pieces[2 * position].rstrip()
        plain = SEPARATOR.join(piece.translate(dict(originals)) for piece in pieces[::2])
        tokens = iter(control)
        ids = self._text_backend.encode(plain, add_special_tokens=False).ids
        separator = self._text_backend.token_to_id(SEPARATOR)
        return [self.control[next(tokens)] if index == separator else index for index in ids]

    @cached_property
    def _text_backend(self) -> Tokenizer:
        """The tokenizer, for which control tokens are text and only `SEPARATOR` is a token."""
        description = json.loads(self._backend.to_str())
        for token in description["added_tokens"]:
            token["special"] |= token["content"] in self.control
        backend = Tokenizer.from_str(json.dumps(description))
        backend.add_tokens([AddedToken(SEPARATOR, normalized=False)])
        backend.encode_special_tokens = True
        return backend

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


def _pieces(message: Message) -> list[tuple[str, str]]:
    """A message as texts, each with the tag of reasoning before it, if it has one."""
    content = message.content
    block = BLOCK.match(content)
    if block is None or not has_reasoning(message):
        return [("", content)]
    opened, closed = block.span(1)
    before, after = content[: opened - len(TAGS[0])], content[closed + len(TAGS[1]) :]
    return [("", before), (TAGS[0], content[opened:closed]), (TAGS[1], after)]
