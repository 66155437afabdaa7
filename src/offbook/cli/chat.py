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
/base            answer the last question with the untuned model
/retry           answer the last question again
/undo            remove the last question and reply
/reset           start a new conversation
/system [TEXT]   set the system text, or remove it
/save FILE       append the conversation to a JSONL file
/exit            end the chat (or Ctrl-D)"""


def chat(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    question: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Ask one question and exit.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="With -p: ask the untuned model.")] = False,
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
        raise ConfigError("--base and --json need -p", fix="in a chat, type /base")
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
            out.print()  # Ctrl-C stops the reply, not the chat


def _command(session: Chat, line: str) -> None:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    last = session.last_question()
    if name in ("/base", "/retry") and last is None:
        raise ConfigError("there is no question yet")
    if name == "/base":
        _print_reply(session, str(last), base=True)
    elif name == "/retry":
        session.undo()
        _print_reply(session, str(last))
    elif name == "/undo":
        session.undo()
        say("removed the last question and reply", "dim")
    elif name == "/reset":
        session.reset()
        say("started a new conversation", "dim")
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
        raise ConfigError(f"unknown command {name}", fix="/help lists all")


def _print_reply(session: Chat, question: str, base: bool = False) -> None:
    for piece in session.stream(question, base):
        # Not through rich: it would wrap a line before it is complete.
        print(printable(piece), end="", flush=True)
    print()
