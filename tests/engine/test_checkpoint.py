"""Files that appear whole or not at all, and that cannot run code."""

import os

import pytest
import torch

from mnemonics.engine import files as checkpoint

CPU = torch.device("cpu")


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.randn(3, 2)}, "phases": [{"accuracy": {"cnn": 61.25}}], "phase": 3}
    checkpoint.save(tmp_path / "c.pt", state)
    loaded = checkpoint.load(tmp_path / "c.pt", CPU)
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])
    assert (loaded["phases"], loaded["phase"]) == (state["phases"], 3)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    checkpoint.write_json(path, {"a": 1})

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_other_format_versions_are_refused_by_number(tmp_path):
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(tmp_path / "c.pt", CPU)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "c.pt", {"model": Payload()})
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoint.load(tmp_path / "c.pt", CPU)
    torch.save({"format": 3, "model": Payload()}, tmp_path / "c.pt")
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.load(tmp_path / "c.pt", CPU)
    assert not (tmp_path / "pwned").exists()
