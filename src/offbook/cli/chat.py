"""`offbook chat`."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offbook.cli.console import out, printable, say
from offbook.errors import ConfigError, OffbookError

if TYPE_CHECKING:
    from offbook.inference.chat import Chat

HELP = """\
/base            the last question, answered by the untuned model
/retry           another reply to the last question
/undo            forget the last question and reply
/reset           forget the conversation
/system [TEXT]   set the system text, or remove it
/save FILE       append the conversation to a JSONL file
/exit            leave (or Ctrl-D)"""


def chat(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    question: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask one question and leave.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="With -p: ask the untuned model.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Randomness; 0 for none.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability to sample within.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Tokens to sample among; 0 for all.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="1 for none.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest reply, in tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes replies repeatable.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With -p: print question and reply as JSON.")
    ] = False,
) -> None:
    """Talk to a trained model.

    \b
    offbook chat runs/myrole
    offbook chat runs/myrole -p "Who are you?" --temperature 0
    offbook chat runs/myrole -p "Who are you?" --base
    """
    if question is None and (base or as_json):
        raise ConfigError("--base and --json go with -p", fix="within a chat, type /base")
    if question is not None and not question.strip():
        raise ConfigError("the question is empty", where="-p")
    from offbook.inference.chat import Chat
    from offbook.inference.generate import make_sampling

    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    sampling = make_sampling({name: value for name, value in given.items() if value is not None})
    session = Chat.open(run, sampling, say)
    if question is None:
        _converse(session)
    elif as_json:
        reply = session.ask(question, base)
        print(json.dumps({"question": question, "reply": reply}, ensure_ascii=False))
    else:
        _print_reply(session, question, base)


def _converse(session: Chat) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history in input())
    say("type a message, or /help", "dim")
    while True:
        try:
            line = input("you> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if line == "/exit":
            return
        try:
            if line.startswith("/"):
                _command(session, line)
            elif line:
                _print_reply(session, line)
        except OffbookError as error:
            say(str(error), "red")
        except KeyboardInterrupt:
            out.print()  # stop this reply, not the chat


def _command(session: Chat, line: str) -> None:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    last = session.last_question()
    if name in ("/base", "/retry") and last is None:
        raise ConfigError("nothing has been asked yet")
    if name == "/base":
        _print_reply(session, str(last), base=True)
    elif name == "/retry":
        session.undo()
        _print_reply(session, str(last))
    elif name == "/undo":
        session.undo()
        say("forgot the last exchange", "dim")
    elif name == "/reset":
        session.reset()
        say("forgot the conversation", "dim")
    elif name == "/system":
        session.system = rest or None
        say(f"system text: {rest}" if rest else "no system text", "dim")
    elif name == "/save":
        if not rest:
            raise ConfigError("/save needs a file name")
        session.save(rest)
        say(f"saved to {rest}", "dim")
    elif name == "/help":
        say(HELP)
    else:
        raise ConfigError(f"no command {name}", fix="/help lists them")


def _print_reply(session: Chat, question: str, base: bool = False) -> None:
    for piece in session.stream(question, base):
        # Not through rich: it would wrap a line before it is complete.
        print(printable(piece), end="", flush=True)
    print()
