"""What runs left behind, for those who report on it, and errors of writing a report."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mnemonics.baselines import BASELINES
from mnemonics.engine.errors import UsageError
from mnemonics.exemplars.methods import EXEMPLARS
from mnemonics.experiment.results import read_results
from mnemonics.reporting.text import Results

KEYS = {"config", "environment", "class_order", "class_order_sha256", "headline", "phases", "summary"}


def load_results(run: Path) -> Results:
    """The results of a run folder or results file; their checksum vouches for what is inside.

    Raises:
        UsageError: naming the path, where they cannot be used.
    """
    path = run if run.is_file() else run / "results.json"
    results = read_results(path)
    if not isinstance(results, dict) or KEYS - results.keys():
        raise UsageError(f"{path}: not the results of a run, which have {', '.join(sorted(KEYS))}")
    config = results["config"]
    if not (config.get("baseline") in BASELINES and config.get("exemplars") in EXEMPLARS):
        raise UsageError(f"{path}: of a baseline or a kind of exemplars that this version does not know")
    if not results["phases"]:
        raise UsageError(f"{path}: no phase is finished yet")
    return results


def load_all(runs: Sequence[Path]) -> list[tuple[str, Results]]:
    """(path, results) of these results files, run folders, and all runs in other folders; each file once.

    Raises:
        UsageError: naming the path, where a folder holds none or one cannot be used.
    """
    paths: dict[Path, Path] = {}
    for run in runs:
        found = [path for path in sorted(run.rglob("*.json")) if looks_like_results(path)] if run.is_dir() else [run]
        if not found:
            raise UsageError(f"{run}: holds no results of a run (results.json, or a *.json file like it)")
        paths |= {path.resolve(): path for path in found if path.resolve() not in paths}
    return [(str(path), load_results(path)) for path in paths.values()]


def looks_like_results(path: Path) -> bool:
    """Whether this is a results.json, or a JSON file of another name with the keys of one."""
    content = path.read_bytes() if path.is_file() else b""
    return path.name == "results.json" or (b'"config":' in content and b'"headline":' in content)


def run_names(runs: Sequence[Path]) -> list[str]:
    """The name of each folder (or file, without its ending), or the paths as given where two have the same name."""
    names = [run.stem if run.is_file() else run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


@contextlib.contextmanager
def writing(out: Path | str) -> Iterator[None]:
    """Turns an OSError in the block, which writes --out, into a UsageError: another place would work."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror}); name another place") from error
