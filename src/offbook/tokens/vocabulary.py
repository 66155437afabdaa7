"""Has the base an embedding for every token of the examples?"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from offbook.errors import ModelError
from offbook.tokens.examples import Examples


def check_vocabulary(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, size: int | None, base: str
) -> None:
    """Refuse examples with a token that the base's embedding has no row for.

    A tokenizer with added tokens, and weights that were not resized for them.

    Args:
        examples: to train on.
        tokenizer: that made them.
        size: rows of the embedding; None where they are not known.
        base: its name, for the message.

    Raises:
        ModelError: naming the first such token, and the rows that have one.
    """
    if size is None or examples.input_ids.max(initial=0) < size:
        return
    beyond = [e for e in examples if e.input_ids.max(initial=0) >= size]
    if not beyond:
        return
    first = int(beyond[0].input_ids[np.argmax(beyond[0].input_ids >= size)])
    where = "every row" if len(beyond) == len(examples) else f"{len(beyond):,} of the rows"
    raise ModelError(
        f"{tokenizer.convert_ids_to_tokens(first)!r} is token {first:,} of the tokenizer, but the "
        f"embedding has {size:,} rows (vocab_size); {where}, such as {beyond[0].source}, "
        f"{'has' if len(beyond) == len(examples) else 'have'} such a token",
        where=base,
        fix=f"use the tokenizer that was published with the weights; or load the base with "
        f"AutoModelForCausalLM, call resize_token_embeddings({len(tokenizer)}) and save it with "
        f"save_pretrained, which gives new tokens random embeddings",
    )
