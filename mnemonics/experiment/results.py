"""results.json and confusion.json of a run folder: what is in them, and the checksum that both hold."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnemonics.engine.errors import UsageError
from mnemonics.engine.files import write_if_new


@dataclass(frozen=True)
class Confusion:
    """Which classes are taken for which after a phase; labels are positions in the class order."""

    phase: int
    classifier: str
    class_names: list[str]  # of each label
    counts: np.ndarray  # int64 [classes, classes]: test images of the row's label predicted as the column's


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 (hex) of `content` as JSON with sorted keys: what the files hold beside it, as "sha256"."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_results(path: Path) -> Any:
    """The content of a JSON file without its checksum, which need not be there.

    Raises:
        UsageError: naming the path, for a file that cannot be read or whose checksum is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); give a run folder or its results.json") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict) and content.pop("sha256", None) not in (None, digest_of(content)):
        raise UsageError(f"{path}: was changed after the run (its checksum is wrong); the run's command restores it")
    return content


def write_confusion(folder: Path, confusion: Confusion) -> None:
    """Write confusion.json: a line, because a thousand classes have a million numbers."""
    content = vars(confusion) | {"counts": confusion.counts.tolist()}
    content["sha256"] = digest_of(content)
    write_if_new(folder / "confusion.json", (json.dumps(content, separators=(",", ":")) + "\n").encode())


def read_confusion(folder: Path) -> Confusion | None:
    """What `write_confusion` wrote; None if there is nothing. Raises UsageError for another content."""
    path = folder / "confusion.json"
    if not path.is_file():
        return None
    content = read_results(path)
    try:
        counts = np.array(content["counts"], dtype=np.int64)
        confusion = Confusion(content["phase"], content["classifier"], list(content["class_names"]), counts)
        if counts.shape != (len(confusion.class_names),) * 2:
            raise ValueError(f"{len(confusion.class_names)} names for counts of shape {counts.shape}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: not a confusion matrix ({error})") from error
    return confusion
