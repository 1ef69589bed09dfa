"""Run folders, for those who read them: results.json checked, the name of a run, and what else it left."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnemonics.engine.files import write_if_new
from mnemonics.reporting.text import Results, comparison_table, results_table

KEYS = {"config", "headline", "phases", "summary"}  # of what looks like results


@dataclass(frozen=True)
class Confusion:
    """Which classes are taken for which after a phase; labels are positions in the class order."""

    phase: int
    classifier: str
    class_names: list[str]  # of each label
    counts: np.ndarray  # int64 [classes, classes]: test images of the row's label predicted as the column's


# results.json


def digest_of(content: dict[str, Any]) -> str:
    """SHA-256 (hex) of `content` as JSON with sorted keys: what the files hold beside it, as "sha256"."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_results(path: Path) -> Any:
    """The content of a JSON file without its checksum, which need not be there. Raises ValueError (one line naming the
    path), also where the checksum is wrong."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a run folder or its results.json") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if isinstance(content, dict) and content.pop("sha256", None) not in (None, digest_of(content)):
        raise ValueError(f"{path}: was changed after the run (its checksum is wrong); the run's command restores it")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is missing in results that are used in the block: a ValueError (one line naming the path)."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: not the results of a run ({type(error).__name__}: {error})") from error


def results_path(run: Path) -> Path:
    """results.json of a run folder; a results file itself."""
    return run if run.is_file() else run / "results.json"


def load_results(run: Path) -> Results:
    """The results of a run folder or results file. Raises ValueError (one line naming the path) where unusable."""
    path = results_path(run)
    results = read_results(path)
    with reading(path):
        if not results["phases"]:
            raise ValueError(f"{path}: no phase is finished yet")
        results_table(results), comparison_table([(run.name, results)])  # they read all that is needed later
    return results


def run_names(runs: Sequence[Path]) -> list[str]:
    """The name of each folder (or file, without its ending), or the paths as given where two have the same name."""
    names = [run.stem if run.is_file() else run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def results_files(run: Path) -> list[Path]:
    """The file itself, or all results in a folder and the folders in it. Raises ValueError if there are none."""
    if not run.is_dir():
        return [run]
    found = [path for path in sorted(run.rglob("*.json")) if looks_like_results(path)]
    if not found:
        raise ValueError(f"{run}: holds no results of a run (results.json, or a *.json file like it)")
    return found


def looks_like_results(path: Path) -> bool:
    """Whether this is a results.json, or a JSON file of another name with the content of one."""
    if path.name == "results.json":
        return True
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= KEYS


# what else is in a run folder


def exemplar_pictures(folder: Path) -> dict[int, Path]:
    """phase -> exemplars_phase_<i>.png, in the order of the phases."""
    found = {path.stem.removeprefix("exemplars_phase_"): path for path in folder.glob("exemplars_phase_*.png")}
    return dict(sorted((int(phase), path) for phase, path in found.items() if phase.isdigit()))


def write_confusion(folder: Path, confusion: Confusion) -> None:
    """Write confusion.json: a line, because a thousand classes have a million numbers."""
    content = vars(confusion) | {"counts": confusion.counts.tolist()}
    content["sha256"] = digest_of(content)
    write_if_new(folder / "confusion.json", (json.dumps(content, separators=(",", ":")) + "\n").encode())


def read_confusion(folder: Path) -> Confusion | None:
    """What `write_confusion` wrote; None if there is nothing. Raises ValueError (one line) for another content."""
    path = folder / "confusion.json"
    if not path.is_file():
        return None
    content = read_results(path)
    try:
        counts = np.array(content["counts"], dtype=np.int64)
        confusion = Confusion(content["phase"], content["classifier"], list(content["class_names"]), counts)
        if counts.shape != (len(confusion.class_names),) * 2:
            raise ValueError(f"{len(confusion.class_names)} names for counts of shape {counts.shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a confusion matrix ({error})") from error
    return confusion
