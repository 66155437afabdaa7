"""What can be chatted with, and the way out where it is opened in another way."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offbook.errors import CheckpointError, ConfigError, OffbookError
from offbook.inference.chat import Chat
from offbook.inference.generate import Sampling
from offbook.inference.model import find_model
from offbook.inference.sources import Source, identify
from offbook.settings.config import Config
from offbook.settings.sections import EMBEDDED_BASE
from offbook.training.train import train

GREEDY = Sampling(temperature=0, max_new_tokens=8)


@pytest.fixture
def run(tiny_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A finished run with checkpoints of steps 2 and 4, whose base is in `tmp_path`."""
    base = tmp_path / "its base"
    shutil.copytree(tiny_config().model.base, base)
    config = tiny_config(f"model.base={base}", "train.save_steps=2", "train.max_steps=4")
    return train(config).run


def answer(path: Path, **options: str | int) -> str:
    return Chat.open(path, GREEDY, **options).ask("who are you")  # type: ignore[arg-type]


def refusal(path: Path, **options: str | int) -> OffbookError:
    with pytest.raises(OffbookError) as caught:
        answer(path, **options)
    return caught.value


def test_an_adapter_on_its_base_answers_as_its_run(run: Path, tmp_path: Path) -> None:
    assert answer(run / "adapter", base=str(tmp_path / "its base")) == answer(run)


def test_a_checkpoint_is_chosen_by_its_step(run: Path, tmp_path: Path) -> None:
    base = str(tmp_path / "its base")
    for step in (2, 4):
        checkpoint = run / "checkpoints" / f"step-{step}"
        assert answer(run, checkpoint=step) == answer(checkpoint, base=base)
    assert answer(run, checkpoint=4) == answer(run)
    error = refusal(run, checkpoint=3)
    assert isinstance(error, CheckpointError)
    assert "no checkpoint 3; there are best (step 4), last, 2, 4; train" in str(error)


def test_a_merged_model_answers_as_its_run(run: Path, tmp_path: Path) -> None:
    chat = Chat.open(run, GREEDY)
    merged = tmp_path / "merged"
    assert chat._engine.model.merge_and_unload().save_pretrained(merged) is None
    chat.template.tokenizer.save_pretrained(merged)
    assert answer(merged) == answer(run)
    whole = Chat.open(merged, GREEDY)
    with pytest.raises(ConfigError, match="no adapter that could be left out"):
        whole.ask("hello", base=True)
    command = re.findall(r"leave --base out: `offbook chat (.*)`", str(refusal(merged, base="x")))
    assert command == [str(merged)]  # which has answered above
    assert "leave it out, or give the run" in str(refusal(merged, checkpoint=2))
    assert answer(run, checkpoint=2)


def test_a_folder_is_chatted_with_whatever_its_name(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / EMBEDDED_BASE)
    monkeypatch.chdir(tmp_path)
    assert find_model(EMBEDDED_BASE).base == tmp_path / EMBEDDED_BASE


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "MODEL.GGUF"
    path.touch()
    assert identify(path) == Source.MODEL


def test_the_base_of_a_run_may_have_moved(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    reply = answer(run)
    moved = (tmp_path / "its base").rename(tmp_path / "elsewhere")
    assert f"`offbook chat {run} --base PATH`" in str(refusal(run))
    assert answer(run, base=str(moved)) == reply
    other = shutil.copytree(tiny_base, tmp_path / "other")
    values = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (other / "config.json").write_text(json.dumps(values))
    assert "the base is not the one" in str(refusal(run, base=str(other)))


def advised(error: OffbookError, **values: Path) -> str:
    """The reply of the chat that a message says how to open."""
    command = shlex.split(str(error).split("`")[1])
    path, *options = [str(values.get(word, word)) for word in command[2:]]
    assert command[:2] == ["offbook", "chat"]
    given = {
        name.removeprefix("--"): value
        for name, value in zip(options[::2], options[1::2], strict=True)
    }
    return answer(Path(path), **given)


def test_an_adapter_without_its_base_says_what_to_type(run: Path, tmp_path: Path) -> None:
    adapter = run / "adapter"
    error = refusal(adapter)
    assert str(error).endswith(f"open its run: `offbook chat {run}`")
    reply = answer(run)
    assert advised(error) == reply
    checkpoint = run / "checkpoints" / "step-2"
    error = refusal(checkpoint)
    assert str(error).endswith(f"open its run: `offbook chat {run} --checkpoint 2`")
    assert advised(error) == answer(run, checkpoint=2)
    alone = shutil.copytree(adapter, tmp_path / "alone")
    base = tmp_path / "its base"
    error = refusal(alone)
    assert re.findall(r"`offbook (.*)`", str(error)) == [f"chat {alone} --base '{base}'"]
    assert advised(error) == reply
    moved = base.rename(tmp_path / "elsewhere")
    error = refusal(alone)
    assert f"it was {base}, which is not here; say where it is" in str(error)
    assert advised(error, PATH=moved) == reply
    config = json.loads((alone / "adapter_config.json").read_text())
    del config["base_model_name_or_path"]
    (alone / "adapter_config.json").write_text(json.dumps(config))
    error = refusal(alone)
    assert str(error).endswith(f"name it: `offbook chat {alone} --base PATH`")
    assert advised(error, PATH=moved) == reply
    assert "leave it out, or give the run" in str(refusal(alone, checkpoint=2))
    assert "not a run directory" in str(refusal(tmp_path))


def test_beside_a_damaged_checkpoint_another_step_answers(run: Path) -> None:
    (run / "checkpoints" / "step-2" / "adapter_model.safetensors").write_bytes(b"")
    assert str(refusal(run, checkpoint=2)).endswith("; use another checkpoint")
    assert answer(run, checkpoint=4)
