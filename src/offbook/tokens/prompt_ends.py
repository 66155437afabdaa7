"""Where the prompts of a conversation end in its text, found with one rendering for all of them.

A prompt is `render(messages[:k], add_generation_prompt=True)`. Rendering each of them takes time
that is quadratic in the number of turns. But most templates write one message after the other, in a
loop, and then the header of a reply. For these, prompt k is the text up to the end of the loop's
turn for message k - 1, and then the header. This is not assumed, but observed:

1. The template gets the messages in a sequence that notes which of them it has looked at. What it
   writes before it looks at message k, or for it, is the same for `messages[:k]`.
2. Marks are put at the beginning and the end of the loop's body. If message k has not been looked
   at when the turn for message k - 1 ends, then for `messages[:k]` the loop ends there.
3. What follows the loop must be the same whatever the messages are: it uses no name that the
   template assigns, and not `messages`.

A template that looks ahead (with `loop.last`, or for the last question) fails 2, and one that is
written in another way fails 2 or 3. Then nothing is known, and each prompt is rendered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from jinja2 import Environment, Template, nodes

Turn = Mapping[str, str]
MARK = "\U0010fffc"  # ends a turn of the loop in the rendered text
FLAG = "add_generation_prompt"


class UnclearError(Exception):
    """The template uses the messages in a way that is not followed."""


class PromptEnds:
    """A chat template with marks in its loop over the messages.

    Args:
        environment: of the template; None where it is not known.
        source: of the template.
        variables: what it can use besides the messages, such as special tokens.
    """

    def __init__(
        self, environment: Environment | None, source: str, variables: Mapping[str, object]
    ) -> None:
        self._template = _marked(environment, source) if environment else None
        self._variables = variables

    def find(self, turns: Sequence[Turn]) -> tuple[str, dict[int, int], str]:
        """The text of a conversation, where turns end in it, and the header of a reply.

        Returns:
            The text up to the end of the loop; for some k, where prompt k ends in it, but for its
            header; and the header.

        Raises:
            UnclearError: where nothing is known.
        """
        if self._template is None or any(MARK in turn["content"] for turn in turns):
            raise UnclearError
        watched = _Watch(turns)
        text = self._template.render(
            self._variables,
            messages=_Messages(watched),
            **{FLAG: True},
            loop_over=watched.loop_over,
            turn_begins=watched.turn_begins,
            turn_ends=watched.turn_ends,
        )
        *written, header = text.split(MARK)
        complete = watched.begun == len(written) == len(watched.ends)
        if not complete or watched.first + watched.begun != len(turns):
            raise UnclearError
        positions = accumulate(map(len, written))
        ends = {k: at for k, at in zip(watched.ends, positions, strict=True) if k is not None}
        return "".join(written), ends, header


class _Watch:
    """What a template has looked at, and the turns of its loop."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = turns
        self.reached = -1  # the last message that was looked at, or looked for
        self.first = 0  # the message with which the loop begins
        self.begun = 0  # turns of the loop
        self.ends: list[int | None] = []  # for each turn, the k of the prompt that ends there

    def look(self, index: int) -> Turn:
        self.reached = max(self.reached, index)
        return self.turns[index]

    def loop_over(self, messages: object) -> _Messages:
        if not isinstance(messages, _Messages):
            raise UnclearError
        self.first = messages.first
        return messages

    def turn_begins(self) -> str:
        self.begun += 1
        return ""

    def turn_ends(self) -> str:
        k = self.first + self.begun
        self.ends.append(k if self.reached == k - 1 else None)
        return MARK


class _Messages:
    """The messages from `first` on, as a template sees them."""

    def __init__(self, watch: _Watch, first: int = 0) -> None:
        self.first = first
        self._watch = watch

    def __getitem__(self, key: object) -> Turn | _Messages:
        if isinstance(key, int) and key >= 0:
            return self._watch.look(self.first + key)
        if isinstance(key, slice) and key.stop is key.step is None and (key.start or 0) >= 0:
            return _Messages(self._watch, self.first + (key.start or 0))
        raise UnclearError

    def __iter__(self) -> Iterator[Turn]:
        index = self.first
        while True:
            try:
                turn = self._watch.look(index)
            except IndexError:
                return
            yield turn
            index += 1

    def __len__(self) -> int:
        raise UnclearError

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None


def _marked(environment: Environment, source: str) -> Template | None:
    """The template with marks in its last loop; None if what follows it may not be constant."""
    tree = environment.parse(source)
    loops = [k for k, node in enumerate(tree.body) if isinstance(node, nodes.For)]
    if not loops:
        return None
    loop = tree.body[loops[-1]]
    assert isinstance(loop, nodes.For)
    assigned = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    assigned |= {macro.name for macro in tree.find_all(nodes.Macro)} | {"messages", "self"}
    for node in tree.body[loops[-1] + 1 :]:
        if {name.name for name in node.find_all(nodes.Name)} & assigned - {FLAG}:
            return None
    if loop.test or loop.else_ or loop.recursive:
        return None

    def call(name: str, *arguments: nodes.Node) -> nodes.Call:
        return nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)

    loop.iter = call("loop_over", loop.iter)
    begin, end = nodes.Output([call("turn_begins")]), nodes.Output([call("turn_ends")])
    loop.body = [begin, *loop.body, end]
    for added in (loop.iter, begin, end):
        added.set_lineno(loop.lineno).set_environment(environment)
    return environment.from_string(tree)
