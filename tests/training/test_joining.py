"""Which processes train together, and what is said where they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from offbook.errors import ConfigError
from offbook.settings.config import Config
from offbook.training.joining import join
from offbook.training.train import train

PLACE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_a_process_without_its_place_trains_alone(
    tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="start it with torchrun or --nproc, or unset WORLD_SIZE"):
        train(tiny_config())
    monkeypatch.delenv("WORLD_SIZE")
    assert train(tiny_config("train.max_steps=1")).steps == 1


def test_several_processes_do_not_share_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    match = "leave it at auto, or train with one process"
    with pytest.raises(ConfigError, match=match), join("cuda:1"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join("cuda:1") as processes:
        assert processes.size == 1
