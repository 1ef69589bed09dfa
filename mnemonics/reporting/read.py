"""What runs left behind, for those who report on it, and errors of writing a report."""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

from mnemonics.config.presets import BUDGETS
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.results import read_results, results_path
from mnemonics.reporting.text import Results, classifiers

CONFIG = {
    **dict.fromkeys(("dataset", "baseline", "exemplars"), str),
    **dict.fromkeys(("nb_phases", "random_seed", "order_seed", "finetune_epochs"), int),
    **dict.fromkeys(BUDGETS, (int, type(None))),
    "exemplar_format": (str, type(None)),  # older runs have none
    "no_adjust": bool,
}


def load_results(run: Path) -> Results:
    """The results of a run folder or results file, which have all that is read of them later.

    Raises:
        UsageError: naming the path, where they cannot be used.
    """
    path = results_path(run)
    results = read_results(path)
    problem = missing(results, {"headline": str, "phases": [{"accuracy": dict}]})
    if not problem and not results["phases"]:
        raise UsageError(f"{path}: no phase is finished yet")
    if problem := problem or missing(results, schema_of({results["headline"], *classifiers(results)})):
        raise UsageError(f"{path}: not the results of a run ({problem})")
    return results


def schema_of(classifiers: set[str]) -> dict[str, Any]:
    """What is read of results.json, see `missing`."""
    each = dict.fromkeys(classifiers, (int, float))
    phase = {
        **dict.fromkeys(("phase", "classes_seen", "exemplar_bytes", "peak_memory_bytes"), int),
        "train_images": {"new": int, "old": int},
        "exemplars_per_class": {"min": int, "max": int},
        "accuracy": each,
        "phase0_accuracy": each,
        "accuracy_by_phase_of_origin": {name: [(int, float)] for name in classifiers},
        "seconds": dict,
    }
    summary = dict.fromkeys(("average_accuracy", "last_accuracy", "forgetting"), each)
    rest = {"environment": dict, "class_order": list, "class_order_sha256": str}
    return {"config": CONFIG, "phases": [phase], "summary": summary, **rest}


def missing(value: Any, schema: Any, name: str = "content") -> str:
    """In words, the first thing in which `value` is not like `schema`; empty where there is none.

    Args:
        schema: a type or several; or a dict with the keys that are needed and the schema of each value; or a list with
            the schema of all entries.
    """
    if not isinstance(value, type(schema) if isinstance(schema, dict | list) else schema):
        return f"{name} is missing or of the wrong type"
    parts = []
    if isinstance(schema, dict):
        parts = [(value.get(key), part, f"{name}.{key}") for key, part in schema.items()]
    elif isinstance(schema, list):
        parts = [(entry, schema[0], f"{name}[{i}]") for i, entry in enumerate(value)]
    return next(filter(None, starmap(missing, parts)), "")


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
