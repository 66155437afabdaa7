"""A chat session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offbook.data.conversations import read_conversations
from offbook.data.messages import Message
from offbook.errors import CheckpointError, ConfigError, ModelError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling, generate
from offbook.inference.pytorch import TorchEngine
from offbook.models.adapter import attach_adapter
from offbook.models.load import load_base
from offbook.settings.config import Config
from offbook.settings.sections import LoraSettings
from offbook.tokens.template import ChatTemplate
from offbook.training.train import train
from support.tiny import make_tokenizer

GREEDY = Sampling(temperature=0, max_new_tokens=8)


@pytest.fixture
def chat(tiny_base: Path, template: ChatTemplate) -> Chat:
    """With an adapter that is not the identity."""
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    model = attach_adapter(base, LoraSettings(), 1, "tiny").eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return Chat(TorchEngine(model, template), sampling=GREEDY)


def test_turns_are_remembered_and_answered_in_context(chat: Chat) -> None:
    first = chat.ask("hello")
    second = chat.ask("hello")
    assert [m.content for m in chat.messages] == ["hello", first, "hello", second]
    chat.reset()
    assert chat.messages == []
    assert chat.ask("hello") == first


def test_streamed_pieces_make_the_reply(chat: Chat) -> None:
    pieces = list(chat.stream("hello"))
    assert "".join(pieces) == chat.messages[-1].content
    prompt = chat.template.build_prompt(chat.messages[:1])
    ids = generate(chat._engine.model, prompt, (), GREEDY, torch.Generator())
    assert "".join(pieces) == chat.template.parse_reply(ids)


def test_the_base_answers_alone_and_adds_nothing(chat: Chat, tiny_base: Path) -> None:
    tuned = chat.ask("hello")
    base = chat.ask("hello", base=True)
    assert base != tuned
    assert len(chat.messages) == 2
    untouched = load_base(tiny_base, torch.float32, torch.device("cpu"))
    plain = attach_adapter(untouched, LoraSettings(), 1, "tiny").eval()
    assert Chat(TorchEngine(plain, chat.template), sampling=GREEDY).ask("hello") == base


def test_replies_can_be_written_by_turns(chat: Chat) -> None:
    """As a comparison of both models on a screen reads them."""
    alone = [chat.ask("hello", base=base) for base in (False, True)]
    chat.reset()
    engine, prompt = chat._engine, chat.template.build_prompt([Message("user", "hello")])
    replies = [iter(engine.reply(prompt, GREEDY, base)) for base in (False, True)]
    texts, open_ones = ["", ""], {0, 1}
    while open_ones:
        for number in sorted(open_ones):
            piece = next(replies[number], None)
            texts[number] += piece or ""
            open_ones -= {number} if piece is None else set()
    assert texts == alone
    abandoned = iter(engine.reply(prompt, GREEDY))
    next(abandoned)
    assert chat.ask("hello", base=True) == alone[1]


def test_an_adapter_has_a_strength_in_range(chat: Chat, tiny_base: Path) -> None:
    whole, base = chat.ask("hello"), chat.ask("hello", base=True)
    told = {}
    for strength in (0, 0.25, 0.5, 1, 1.5):
        chat.reset()
        chat.set_strength(strength)
        told[strength] = chat.ask("hello")
        assert chat.strength == strength
    assert (told[0], told[1]) == (base, whole)
    assert len(set(told.values())) > 2
    for strength in (-0.1, 1.6, float("nan")):
        with pytest.raises(ConfigError) as caught:
            chat.set_strength(strength)
        assert caught.value.fix == "give a number from 0 to 1.5"
    plain = load_base(tiny_base, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match="this is a whole model, with no adapter that has a str"):
        Chat(TorchEngine(plain, chat.template)).set_strength(1)


def test_replies_of_no_strength_are_those_of_the_base(chat: Chat) -> None:
    engine = chat._engine
    texts = ("hello", "ten", "你好")
    prompts = [chat.template.build_prompt([Message("user", text)]) for text in texts]
    base, tuned = engine.replies(prompts, 8, base=True), engine.replies(prompts, 8)
    assert base != tuned
    engine.set_strength(0)
    assert engine.replies(prompts, 8) == base
    engine.set_strength(1)
    assert engine.replies(prompts, 8) == tuned


def test_a_dora_adapter_has_no_other_strength(tiny_base: Path, template: ChatTemplate) -> None:
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    model = attach_adapter(base, LoraSettings(use_dora=True), 1, "tiny").eval()
    chat = Chat(TorchEngine(model, template), sampling=GREEDY)
    chat.set_strength(1)
    with pytest.raises(ConfigError, match="a DoRA adapter is not a sum, so it has no other streng"):
        chat.set_strength(0.5)
    assert chat.strength == 1


def test_undo_forgets_one_exchange(chat: Chat) -> None:
    chat.ask("one")
    chat.ask("two")
    assert chat.last_question() == "two"
    chat.undo()
    assert chat.last_question() == "one"
    chat.undo()
    chat.undo()
    assert chat.last_question() is None


def test_system_text_is_in_the_prompt(chat: Chat) -> None:
    without = chat.ask("hello")
    chat.reset()
    chat.system = "You are a lamp keeper of the rocks"
    assert chat.ask("hello") != without


def test_a_saved_chat_can_be_trained_on(chat: Chat, tmp_path: Path) -> None:
    chat.system = "Be brief."
    file = tmp_path / "chat.jsonl"
    with pytest.raises(ConfigError, match="there is no reply yet"):
        chat.save(file)
    chat.ask("hello")
    chat.messages[-1] = type(chat.messages[-1])("assistant", "Hello, little boat.")
    chat.save(file)
    chat.save(file)
    rows = list(read_conversations(str(file)))
    assert [[m.content for m in row.messages] for row in rows] == [
        ["Be brief.", "hello", "Hello, little boat."]
    ] * 2
    with pytest.raises(ConfigError, match="cannot write"):
        chat.save(tmp_path / "no" / "folder.jsonl")


def test_a_long_chat_forgets_its_beginning(chat: Chat) -> None:
    for _ in range(20):
        chat.ask("one two three four five six seven")
    assert len(chat.messages) == 40


def test_a_question_longer_than_the_context_is_refused(chat: Chat) -> None:
    with pytest.raises(ConfigError, match=r"the question has \d+ tokens; this model takes 248"):
        chat.ask("one two three " * 200)
    assert chat.messages == []
    assert chat.ask("one two three")  # "shorten it"


@pytest.mark.parametrize(
    ("text", "said", "better"),
    [
        ("hello \ud800", "leave that out", "hello "),
        ("\udce4\udcbd\udca0", "write it in UTF-8", "你"),
    ],
)
def test_half_a_character_is_refused(chat: Chat, text: str, said: str, better: str) -> None:
    with pytest.raises(ConfigError, match=f"the question is not text: .*; {said}"):
        chat.ask(text)
    chat.system = text
    with pytest.raises(ConfigError, match=f"the system text is not text: .*; {said}"):
        chat.ask("hello")
    assert chat.messages == []
    chat.system = better
    assert chat.ask(better)


def test_a_reply_says_why_it_ended(chat: Chat) -> None:
    chat.ask("hello")
    assert (chat.finish_reason, chat.reply_tokens) == ("length", 8)
    chat.reset()
    prompt = chat.template.build_prompt([Message("user", "hello")])
    stop = next(generate(chat._engine.model, prompt, (), GREEDY, torch.Generator()))
    chat._engine.stop_ids = {stop}
    assert chat.ask("hello") == ""
    assert (chat.finish_reason, chat.reply_tokens) == ("stop", 0)


def test_a_reply_stops_at_the_end_of_the_context(chat: Chat) -> None:
    chat.sampling = Sampling(temperature=0, max_new_tokens=10_000)
    chat._engine.stop_ids = set()
    chat.ask("hello")
    prompt = chat.template.build_prompt([Message("user", "hello")])
    assert chat.context == 256
    assert (chat.finish_reason, chat.reply_tokens) == ("context", 256 - len(prompt))


def test_exchanges_that_do_not_fit_are_counted(chat: Chat) -> None:
    counts = []
    for _ in range(12):
        chat.ask("one two three four five six seven")
        counts.append(chat.left_out)
        assert len(chat.template.build_prompt(chat.messages[2 * chat.left_out : -1])) <= 248
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] > 0


def test_an_interrupted_reply_is_kept(chat: Chat) -> None:
    pieces = chat.stream("hello")
    first = next(pieces)
    pieces.close()
    assert [m.content for m in chat.messages] == ["hello", first]
    assert chat.finish_reason is None


def test_a_question_without_a_reply_is_in_no_row(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    stop_ids = chat._engine.stop_ids
    chat._engine.stop_ids = set(range(chat._engine.vocabulary))
    assert chat.ask("hello") == ""
    assert chat.last_question() == "hello"  # which can be asked again
    with pytest.raises(ConfigError, match="there is no reply yet"):
        chat.save(file)
    chat._engine.stop_ids = stop_ids
    chat.ask("ten")
    first = list(chat.messages)
    assert [m.content for m in first[::2]] == ["ten"]
    chat._engine.stop_ids = set(range(chat._engine.vocabulary))
    chat.ask("one")
    chat.save(file)
    (row,) = read_conversations(str(file))
    assert list(row.messages) == first


def test_a_token_without_an_embedding_is_refused(
    tiny_base: Path, tmp_path: Path, template: ChatTemplate
) -> None:
    base = load_base(tiny_base, torch.float32, torch.device("cpu"))
    tokenizer = make_tokenizer(tmp_path, added=("<lamp>",))
    odd = Chat(TorchEngine(base, ChatTemplate(tokenizer)), sampling=GREEDY)
    assert odd.ask("hello")
    with pytest.raises(ModelError, match=r"'<lamp>' is token \d+ of the tokenizer, but the base"):
        odd.ask("a <lamp> there")
    assert len(odd.messages) == 2
    assert odd.ask("a lamp there")  # "ask without it"
    # "or use the tokenizer that was published with the base"
    own = Chat(TorchEngine(base, template), sampling=GREEDY)
    assert own.ask("a <lamp> there")


def test_a_run_is_opened_by_its_path(tiny_config: Callable[..., Config]) -> None:
    result = train(tiny_config())
    session = Chat.open(result.run, GREEDY)
    assert session.ask("hello") == Chat.open(result.run, GREEDY).ask("hello")


def test_an_unfinished_run_chats_from_its_checkpoint(tiny_config: Callable[..., Config]) -> None:
    asked = iter(range(100))
    result = train(tiny_config("train.save_steps=1"), should_stop=lambda: next(asked) >= 6)
    heard: list[str] = []
    Chat.open(result.run, GREEDY, heard.append).ask("hello")
    assert heard == [f"the run is not finished; this is step-{result.steps}"]


def test_a_run_with_nothing_yet_says_so(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    result = train(tiny_config(), should_stop=lambda: True)
    with pytest.raises(CheckpointError, match="the run has no adapter yet; finish it"):
        Chat.open(result.run)
    with pytest.raises(CheckpointError, match="not a run directory; `offbook train` makes one"):
        Chat.open(tmp_path / "nowhere")
