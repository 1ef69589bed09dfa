"""Data shared by the tests."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

TEST_DATA = Path(os.environ.get("MNEMONICS_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of numbers: a run in this process draws nothing, which takes a third of a tiny run's time."""
    for drawing in ("write_report", "plot_exemplars"):
        monkeypatch.setattr(f"mnemonics.algorithm.{drawing}", lambda *arguments, **options: None)
    monkeypatch.setattr("mnemonics.engine.log.RunLog.image", lambda *arguments: None)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in this process that cannot go on. Returns its line on standard error, the only one there."""

    def run(main: Callable, *arguments: object, status: int = 2, after_words: bool = False) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        said, error = capsys.readouterr()
        assert (said != "", error.count("\n")) == (after_words, 1), error
        return error

    return run


@pytest.fixture(scope="session")
def cifar100_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds cifar-100-python with 10 training and 3 test images of each class of the real CIFAR-100."""
    return unpacked("cifar100_mini.tar.gz", tmp_path_factory)


@pytest.fixture(scope="session")
def imagenet_mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<wnid>/ and val/<wnid>/ with 30 and 10 JPEGs of 64x64 pixels of each of 20 real ImageNet classes."""
    return unpacked("imagenet_mini.tar", tmp_path_factory) / "imagenet_mini"


def unpacked(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = TEST_DATA / name
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in {TEST_DATA}; MNEMONICS_TEST_DATA names another folder")
    folder = tmp_path_factory.mktemp(name.split(".")[0])
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder
