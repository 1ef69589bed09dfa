"""Goes from ILSVRC2012 as downloaded to train/<wnid>/ and val/<wnid>/; the same command continues a killed one."""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mnemonics.data.imagenet.command import Options, parse_args
from mnemonics.data.imagenet.images import PARTIAL, Job, Report, make_class, write_whole
from mnemonics.data.imagenet.source import SPLITS, ClassImages, Source, find_source
from mnemonics.engine.errors import UsageError

WNIDS, RECORD = "wnids.txt", "prepared.json"
KNOWN = {  # SHA-256 of wnids.txt
    "dbf96adcdd5a29fca14c65283bb178686b464d20ddfee751b8a96b7937cbd00c": "the ImageNet-Subset of the paper",
    "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15": "all 1000 classes of ILSVRC2012",
}


def draw(wnids: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` of the sorted wnids, in the order drawn: what numpy.random.seed(seed), numpy.random.choice give."""
    return np.random.RandomState(seed).choice(sorted(wnids), count, replace=False).tolist()


def chosen_classes(options: Options, source: Source) -> list[str]:
    """The wnids in the drawn order; all of them, sorted, where no number was asked for. Raises UsageError."""
    there = sorted(source.train)
    if options.num_classes is not None and options.num_classes > len(there):
        raise UsageError(f"--num_classes {options.num_classes}: --src {options.src} has {len(there)} classes; at most "
                         f"{len(there)} would work")  # fmt: skip
    wnids = there if options.num_classes is None else draw(there, options.num_classes, options.seed)
    absent = [wnid for wnid in wnids if wnid not in source.val]
    if absent:
        raise UsageError(f"--src {options.src}: {len(absent)} of the {len(wnids)} classes have no validation images, "
                         f"such as {absent[0]}; a source that has them would work")  # fmt: skip
    return wnids


def job_of(options: Options, source: Source) -> Job:
    """Raises UsageError for a kind of link that cannot be."""
    link = options.link or ("copy" if source.all_archives else "symlink")
    if source.all_archives and link != "copy":
        raise UsageError(f"--link {link}: images are extracted from the archives in --src {options.src}; leave it out")
    if link == "hardlink" and device(options.src / "train") != device(options.dst):
        raise UsageError(f"--link hardlink: --src {options.src} and --dst {options.dst} are on different file systems; "
                         "symlink or copy would work")  # fmt: skip
    return Job(options.dst, options.resize, options.quality, link, options.check)


def device(path: Path) -> int:
    """The file system that a folder is on, or would be on."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev


def settings_of(job: Job) -> dict[str, Any]:
    """What the files are like: another run with the same --dst must agree."""
    if job.resize is None:
        return {"resize": None, "link": job.link}
    return {"resize": "x".join(map(str, job.resize)), "quality": job.quality}


def check_dst(options: Options, wnids: bytes, settings: dict[str, Any]) -> None:
    """Raises UsageError unless the folder is new, or of an earlier run with the same classes and settings."""
    dst, src = options.dst, options.src.resolve()
    if dst.exists() and not dst.is_dir():
        raise UsageError(f"--dst {dst}: is not a folder; name another one")
    for path in (dst, *(dst / split for split in SPLITS)):
        if path.resolve().is_relative_to(src):
            raise UsageError(f"--dst {dst}: lies in --src {options.src}; name a folder outside of it")
    started = [split for split in SPLITS if (dst / split).exists()]
    if not started:
        return
    if not (dst / WNIDS).is_file():
        raise UsageError(f"--dst {dst}: holds {started[0]}/ but no {WNIDS}, so it is not of an earlier run; name "
                         "another folder")  # fmt: skip
    if (dst / WNIDS).read_bytes() != wnids:
        raise UsageError(f"--dst {dst}: its {WNIDS} lists other classes than those asked for; name another folder")
    there = read_record(dst)
    for name, value in there.get("settings", settings).items():
        if name not in settings or settings[name] != value:
            flag = f"--{name} {value}" if value is not None else f"no --{name}"
            raise UsageError(f"--dst {dst}: its images were made with {flag}; do the same, or name another folder")


def read_record(dst: Path) -> dict[str, Any]:
    try:
        record = json.loads((dst / RECORD).read_text(encoding="utf-8"))
        return record if isinstance(record.get("settings"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}  # none, or not ours


def write_if_new(dst: Path, name: str, content: bytes) -> None:
    path = dst / name
    if not path.is_file() or path.read_bytes() != content:
        write_whole(dst, path, content)


def write_record(dst: Path, record: dict[str, Any]) -> None:
    write_if_new(dst, RECORD, (json.dumps(record, indent=1) + "\n").encode())


@contextlib.contextmanager
def in_hand(dst: Path) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and clear away the partial files of a killed one.

    Raises:
        UsageError: where another run is at work. OSError where the folder cannot be written.
    """
    dst.mkdir(parents=True, exist_ok=True)
    with open(dst / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # others than this one: a network file system without locks, where none is held
            if isinstance(error, BlockingIOError):
                raise UsageError(f"--dst {dst}: another run is writing there; wait until it ends") from None
        shutil.rmtree(dst / PARTIAL, ignore_errors=True)
        (dst / PARTIAL).mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(dst / PARTIAL, ignore_errors=True)


def follow_parent() -> None:
    """End this process when its parent is gone: a killed one cannot tell."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def make_all(job: Job, classes: list[ClassImages], jobs: int) -> Iterator[Report]:
    """Make the classes, one per process at a time. Raises OSError, UsageError and BrokenProcessPool."""
    if jobs == 1 or len(classes) == 1:
        yield from (make_class(job, where) for where in classes)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of tqdm's thread
    with ProcessPoolExecutor(min(jobs, len(classes)), context, initializer=follow_parent) as pool:
        futures = [pool.submit(make_class, job, where) for where in classes]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():  # each has a whole class in hand: too long to wait for
                process.terminate()
            raise


def make_with_bar(job: Job, classes: list[ClassImages], jobs: int) -> list[Report]:
    reports, images = [], 0
    bar = tqdm(total=len(classes), unit="class", desc="train and val", disable=None)
    with bar, contextlib.closing(make_all(job, classes, jobs)) as all_reports:  # closed, it ends its processes
        for report in all_reports:
            reports.append(report)
            images += report.made + report.kept
            bar.set_postfix(images=images, refresh=False)
            bar.update()
    return reports


def prepare(options: Options) -> tuple[list[str], list[str]]:
    """Returns what to tell and the problems. Raises UsageError, OSError and BrokenProcessPool."""
    source = find_source(options.src, options.devkit)
    wnids = chosen_classes(options, source)
    job, text = job_of(options, source), "".join(f"{wnid}\n" for wnid in wnids).encode()
    digest, settings = hashlib.sha256(text).hexdigest(), settings_of(job)
    check_dst(options, text, settings)
    print(f"{len(wnids)} of {len(source.train)} classes, SHA-256 of {WNIDS} {digest}: "
          f"{KNOWN.get(digest, 'not the classes of the paper')}", flush=True)  # fmt: skip
    with in_hand(options.dst):
        write_if_new(options.dst, WNIDS, text)
        write_if_new(options.dst, f"{WNIDS}.sha256", f"{digest}  {WNIDS}\n".encode())
        if read_record(options.dst).get("settings") != settings:
            write_record(options.dst, {"settings": settings})
        classes = [split[wnid] for split in (source.train, source.val) for wnid in wnids]
        reports = make_with_bar(job, classes, options.jobs)
        counts = {split: sum(r.made + r.kept for r in reports if r.split == split) for split in SPLITS}
        problems = sorted([*source.strays, *(line for report in reports for line in report.problems)])
        write_record(options.dst, {"settings": settings, "images": counts, "problems": len(problems)})
    made, kept = (sum(getattr(report, name) for report in reports) for name in ("made", "kept"))
    numbers = ", ".join(f"{count} images in {split}" for split, count in counts.items())
    return [f"{options.dst}: {numbers}; {made} made now, {kept} were there"], problems


def main(script: str, about: str, dst: str, subset: bool, arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 files that cannot be used or a disk that cannot be written, 2 a mistake."""
    try:
        told, problems = prepare(parse_args(script, about, dst, subset, arguments))
    except UsageError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"{script}: {where}{error.strerror or error}; finished files are kept, the same command continues",
              file=sys.stderr)  # fmt: skip
        return 1
    except BrokenProcessPool:
        print(f"{script}: --jobs: a process was killed, maybe for memory; with fewer, the same command continues",
              file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted; the same command continues", file=sys.stderr)
        return 130
    print("\n".join(told))
    for problem in problems:
        print(" ".join(problem.split()), file=sys.stderr)
    if problems:
        print(f"{script}: the {len(problems)} above could not be used; all else is done", file=sys.stderr)
    return 1 if problems else 0
