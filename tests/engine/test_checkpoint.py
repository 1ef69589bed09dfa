"""Files that appear whole or not at all, and that cannot run code."""

import contextlib
import io
import os
import zipfile

import pytest
import torch

from mnemonics.engine import files as checkpoint

CPU = torch.device("cpu")


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.randn(3, 2)}, "phases": [{"accuracy": {"cnn": 61.25}}], "phase": 3}
    checkpoint.save(tmp_path / "c.pt", state)
    with zipfile.ZipFile(tmp_path / "c.pt", "a") as archive:
        archive.comment = b"sha256:" + b"0" * 64  # as earlier versions did
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


def saved(value, **options):
    target = io.BytesIO()
    torch.save(value, target, **options)
    return target.getvalue()


class Payload:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


HOSTILE = {  # what becomes of a whole checkpoint -> the message
    "another version": (lambda data: saved({"format": 99}), "format 99"),
    "code": (lambda data: saved({"format": checkpoint.FORMAT, "model": Payload()}), "cannot be read"),
    "no version": (lambda data: saved([1, {"format": None}]), "cannot be read"),
    "protocol 4": (lambda data: saved({"format": checkpoint.FORMAT}, pickle_protocol=4), "protocol"),  # no warning
    "old format before an archive": (
        lambda data: saved({"format": checkpoint.FORMAT}, _use_new_zipfile_serialization=False) + data,
        "not a zip archive",
    ),
    "one byte": (lambda data: data.replace(b"number", b"numbes"), "checksum of archive/data.pkl is wrong"),
    "cut": (lambda data: data[:-1], "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_and_damaged_files_are_refused_in_a_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[kind]
    checkpoint.save(tmp_path / "c.pt", {"number": 3})
    (tmp_path / "c.pt").write_bytes(change((tmp_path / "c.pt").read_bytes()))
    with pytest.raises(ValueError, match=message) as refused:
        checkpoint.load_alone(tmp_path / "c.pt")
    assert "\n" not in str(refused.value)
    is_whole = kind in ("another version", "code", "no version", "protocol 4")
    assert isinstance(refused.value, checkpoint.DamagedError) is not is_whole
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_damaged_byte_anywhere_is_refused_or_changes_nothing(tmp_path):
    state = {"format": checkpoint.FORMAT, "weights": torch.arange(4.0), "name": "abc"}
    whole = saved(state)
    for place in range(0, len(whole), 3):
        data = bytearray(whole)
        data[place] ^= 255
        with contextlib.suppress(ValueError):
            loaded = checkpoint.parsed(tmp_path / "c.pt", bytes(data), CPU)
            assert torch.equal(loaded.pop("weights"), state["weights"])
            assert loaded == {"format": checkpoint.FORMAT, "name": "abc"}
