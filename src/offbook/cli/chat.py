"""`offbook chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.cells import cell_len
from rich.text import Text

from offbook.cli.arguments import Checkpoint
from offbook.cli.console import WordWrap, err, out, printable, say, waiting
from offbook.errors import ConfigError, OffbookError, shorten, suggest
from offbook.inference import MAX_STRENGTH

if TYPE_CHECKING:
    from offbook.inference.chat import Chat

COMMANDS = {
    "/base": "answer the last question again, without the adapter and the conversation before",
    "/retry": "answer the last question again",
    "/undo": "forget the last question and reply",
    "/reset": "start a new conversation",
    "/strength": f"followed by the adapter's strength, 0 to {MAX_STRENGTH:g}; alone, it tells the "
    "present one",
    "/system": "followed by a system text, or by none",
    "/save": "followed by a JSONL file to append to",
    "/help": "list these commands",
    "/exit": "end the chat; so do exit, quit, Ctrl-D, and Ctrl-C on an empty line",
}
HELP = "\n".join([f"{name:<9} {what}" for name, what in COMMANDS.items()])
ENDS = ("/exit", "/quit", "exit", "quit")
MAX_LABEL = 20  # characters of a run's name before its replies


class Backend(str, Enum):
    """What `--engine` takes."""

    TORCH = "torch"
    LLAMA_CPP = "llama.cpp"


def chat(
    run: Annotated[
        Path, typer.Argument(help="A run directory, an adapter with --base, or a whole model.")
    ],
    question: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help="Ask one question and exit; - reads it from stdin."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base of an adapter, or where a run's base is now.")
    ] = None,
    checkpoint: Checkpoint = None,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="With -p: ask the model without its adapter.")
    ] = False,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0, max=MAX_STRENGTH, help="Strength of the adapter; 0 is the base, 1 as trained."
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Randomness of sampling; 0 for none.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the tokens that make up this probability.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Sample among so many tokens; 0 for all.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalty on repeated tokens; 1 for none.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of a reply.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling, for repeatable replies.")
    ] = None,
    engine: Annotated[
        Backend,
        typer.Option(help="What computes: PyTorch, or llama.cpp, which is faster on a processor."),
    ] = Backend.TORCH,
    as_json: Annotated[
        bool, typer.Option("--json", help="With -p: print the reply and why it ended as JSON.")
    ] = False,
) -> None:
    """Talk to a trained model. Each line is a message; so is pasted text of several lines.

    \b
    offbook chat runs/myrole
    offbook chat runs/myrole -p "Who are you?"
    offbook chat runs/myrole -p hello --untuned
    offbook chat runs/myrole -p - < question.txt
    offbook chat runs/myrole --checkpoint best
    offbook chat runs/myrole --strength 0.8
    offbook chat adapter-folder --base base-folder
    offbook chat merged-model
    offbook chat runs/myrole --engine llama.cpp
    """
    from offbook.inference.sources import Source, identify

    if question is None and (untuned or as_json):
        raise ConfigError("--untuned and --json need -p", fix="in a chat, type /base")
    if question == "-":
        question = sys.stdin.read().removeprefix("\ufeff").removesuffix("\n")
    if question is not None and not question.strip():
        raise ConfigError("the question is empty", where="-p")
    if identify(run, base, checkpoint) == Source.MODEL and (untuned or strength is not None):
        fix = "omit --untuned" if untuned else "omit --strength"
        raise ConfigError("a whole model has no adapter", where=str(run), fix=fix)
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    with ExitStack() as stack:
        with waiting(f"loading {run}"):
            from offbook.inference.chat import Chat
            from offbook.inference.generate import make_sampling

            options = {name: value for name, value in given.items() if value is not None}
            sampling = make_sampling(options)
            if engine is Backend.TORCH:
                session = Chat.open(run, sampling, say, base=base, checkpoint=checkpoint)
            else:
                from offbook.serve.chat import open_chat

                opened = open_chat(run, sampling, say, base=base, checkpoint=checkpoint)
                session = stack.enter_context(opened)
        if strength is not None:
            session.set_strength(strength)
        if question is None:
            _converse(session, printable(run.resolve().name)[:MAX_LABEL])
        elif as_json:
            reply = session.ask(question, untuned)
            _tell_limits(session, 0)
            reason = session.finish_reason
            _print_json({"question": question, "reply": reply, "finish_reason": reason})
        else:
            _print_reply(session, question, "", untuned)


def _print_json(values: dict[str, str | None]) -> None:
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = json.dumps(values)
    print(text)


def _converse(session: Chat, name: str) -> None:
    """Answer line by line. On a terminal, replies are labelled, and Ctrl-C does not end the chat
    where there is something else that it can end.
    """
    on_terminal = sys.stdin.isatty()
    label = f"{name}> " if on_terminal and sys.stdout.isatty() else ""
    half_typed = _edit_lines()
    say(f"type a message, or a command: {' '.join(COMMANDS)}", "dim")
    while True:
        try:
            line = _read_line(on_terminal, bool(label)).strip()
        except EOFError:
            if on_terminal:
                out.print()
            return
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            out.print()
            if half_typed():
                continue
            return
        if line.lower() in ENDS:
            return
        try:
            if _is_command(line):
                _command(session, line, label)
            elif line:
                _print_reply(session, line, label)
        except OffbookError as error:
            say(str(error), "red")
        except KeyboardInterrupt:
            if not on_terminal:
                raise
            say("stopped", "dim")


def _edit_lines() -> Callable[[], str]:
    """Let `input` have arrow keys, a history, and pasted text of several lines as one line.

    Returns:
        What is typed so far, when it was interrupted.
    """
    try:
        import readline
    except ImportError:  # Windows
        return str
    readline.parse_and_bind("set enable-bracketed-paste on")
    return readline.get_line_buffer


def _read_line(on_terminal: bool, with_labels: bool) -> str:
    if on_terminal and not with_labels:
        err.print("you> ", end="")  # stdout is a file, for replies alone
    return input("you> " if with_labels else "")


def _is_command(line: str) -> bool:
    """Whether a line is for us. Pasted text may begin with a slash, such as that of a path."""
    return line.startswith("/") and ("\n" not in line or line.split(maxsplit=1)[0] in COMMANDS)


def _command(session: Chat, line: str, label: str) -> None:
    name, *more = line.split(maxsplit=1)
    rest = "".join(more)
    last = session.last_question()
    if name in ("/base", "/retry") and last is None:
        raise ConfigError("there is no question yet")
    if name == "/base":
        _print_reply(session, str(last), label and "base> ", base=True)
    elif name == "/retry":
        before = list(session.messages)
        session.undo()
        try:
            _print_reply(session, str(last), label)
        except OffbookError:
            session.messages = before
            raise
    elif name == "/undo":
        session.undo()
        say("removed the last question and reply", "dim")
    elif name == "/reset":
        session.reset()
        say("started a new conversation", "dim")
    elif name == "/system":
        from offbook.inference.chat import require_text

        require_text(rest, "system text")
        session.system = rest or None
        say(f"system text: {rest}" if rest else "no system text", "dim")
    elif name == "/strength":
        if rest:
            session.set_strength(_number(rest))
        say(f"strength {session.strength:g}", "dim")
    elif name == "/save":
        if not rest:
            raise ConfigError("/save needs a file name")
        session.save(rest)
        say(f"saved to {rest}", "dim")
    elif name == "/help":
        say(HELP)
    else:
        guess = suggest(name, list(COMMANDS))
        raise ConfigError(f"unknown command {name}", fix=guess or "/help lists all")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{shorten(text)} is no number", where="/strength") from None


def _print_reply(session: Chat, question: str, label: str, base: bool = False) -> None:
    """Print a reply while it arrives; on a terminal, word by word."""
    wrap = WordWrap(out.width, cell_len(label)) if sys.stdout.isatty() else None
    left_out, begun = session.left_out, False
    try:
        for piece in session.stream(question, base):
            if not begun:
                out.print(Text(label, style="bold"), end="")
                begun = True
            # Not through rich: it would wrap a line before it is complete.
            text = printable(piece)
            print(wrap.feed(text) if wrap else text, end="", flush=True)
    finally:
        if begun:
            print(wrap.end() if wrap else "")
    if not begun:
        print(label)
    _tell_limits(session, left_out)


def _tell_limits(session: Chat, left_out: int) -> None:
    """Say what the last prompt and reply lack; `left_out` exchanges were told before."""
    context = f"the context of {session.context:,} tokens" if session.context else ""
    if session.left_out > left_out:
        count = f"the oldest {session.left_out} exchanges were"
        if session.left_out == 1:
            count = "the oldest exchange was"
        say(f"{count} left out of the prompt, to fit in {context}", "dim")
    if session.finish_reason == "length":
        say(f"cut at {session.reply_tokens} tokens; --max-new-tokens allows more", "dim")
    elif session.finish_reason == "context":
        say(f"cut at {session.reply_tokens} tokens, where {context} ends", "dim")
