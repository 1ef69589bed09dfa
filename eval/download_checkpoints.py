"""Downloads checkpoints of the authors' code and unpacks them.

    python eval/download_checkpoints.py                                  all three sets from their Google Drive
    python eval/download_checkpoints.py --set cifar100 --url http://.../logs.tar.gz --sha256 0123...

An interrupted download is continued by the same command. OUT gets the folders that are named like
cifar100_nfg50_ncls2_nproto20_mtl_exp01, each whole or not at all. Exit status: 0 done, 2 something must be changed.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mnemonics.config.checks import check_setting
from mnemonics.engine.errors import UsageError
from mnemonics.engine.files import write_json
from mnemonics.legacy.authors import DATASETS, FOLDER_NAME
from mnemonics.legacy.checkpoints import html_title
from mnemonics.legacy.fetch import fetch_drive, fetch_http

DRIVE_ID = "1sKO2BOssWgTFBNZbM50qDzgk6wqg4_l8"
DRIVE_URL = f"https://drive.google.com/file/d/{DRIVE_ID}/view"
RECORD = ".downloaded.json"


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="download_checkpoints.py", description="Download the authors' checkpoints.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--set", default="all", choices=(*DATASETS, "all"), help="which of them to unpack (%(default)s)")
    add("--url", default=DRIVE_URL, help="a tar archive: http(s), file or Google Drive (%(default)s)")
    add("--out", type=Path, default=Path("checkpoints"), help="folder for the checkpoints (%(default)s)")
    add("--sha256", help="refuse the archive unless this is its SHA-256 (64 hexadecimal digits)")
    return parser.parse_args(arguments)


def get(options: argparse.Namespace) -> list[str]:
    """Download, check and unpack. Returns what to tell. Raises UsageError."""
    out, sets = options.out, set(DATASETS if options.set == "all" else [options.set])
    check_setting("out", str(out))
    if options.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", options.sha256):
        raise UsageError(f"--sha256 {options.sha256}: needed are 64 hexadecimal digits")
    if not is_url(options.url):
        raise UsageError(f"--url {options.url}: http://..., https://... or file:///... would work")
    if is_there(out, options.url, sets):
        return [f"{out}: the checkpoints are there already"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        archive = local_copy(options.url, out)
        folders = checked_and_unpacked(archive, options, sets)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror or error}); name another folder") from error
    absent = sorted(name for name in sets if not any(FOLDER_NAME.fullmatch(f)[1] == name for f in folders))
    return [str(out / folder) for folder in folders] + [f"not in the archive: {name}" for name in absent]


def checked_and_unpacked(archive: Path, options: argparse.Namespace, sets: set[str]) -> list[str]:
    """Returns the names of the folders. A downloaded archive is removed: used, or not what was asked for."""
    remove = urlsplit(options.url).scheme != "file"
    digest = sha256_of(archive)
    print(f"{archive.stat().st_size} bytes, SHA-256 {digest}", flush=True)
    try:
        check_archive(archive, options, digest)
        folders = unpack(archive, options.out, sets)
    except UsageError:
        if remove:
            archive.unlink()
        raise
    earlier = read_record(options.out, options.url)
    record = {
        "url": options.url,
        "sha256": digest,
        "sets": sorted(sets | set(earlier["sets"])),
        "folders": sorted({*folders, *earlier["folders"]}),
    }
    write_json(options.out / RECORD, record)
    if remove:
        archive.unlink()
    return folders


def is_url(url: str) -> bool:
    """Whether it can be asked for: names of files may hold any character, those of servers and what is on them not."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "file" or (
            parts.scheme in ("http", "https") and bool(parts.hostname) and re.fullmatch("[!-~]+", url) is not None
        )
    except ValueError:
        return False


def is_there(out: Path, url: str, sets: set[str]) -> bool:
    """Whether an earlier download brought these sets or, for the authors' own archive, someone unpacked them here."""
    record = read_record(out, url)
    if sets <= set(record["sets"]) and all((out / folder).is_dir() for folder in record["folders"]):
        return True
    return url == DRIVE_URL and all(any(out.glob(f"{name}_nfg*")) for name in sets)


def read_record(out: Path, url: str) -> dict[str, list[str]]:
    """What earlier downloads from `url` brought: the sets looked for, the folders found."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record["url"] == url:
            return {"sets": list(record["sets"]), "folders": list(record["folders"])}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or not ours
    return {"sets": [], "folders": []}


def local_copy(url: str, out: Path) -> Path:
    """The archive as a whole file: below `out`, unless it is a file already. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        path = Path(url2pathname(parts.path))
        if not path.is_file():
            raise UsageError(f"--url {url}: there is no such file")
        return path
    target = out / f".download-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    found = re.search(r"/d/([\w-]+)|[?&]id=([\w-]+)", url)
    if parts.hostname in ("drive.google.com", "docs.google.com") and found:
        fetch_drive(found[1] or found[2], target)
    else:
        fetch_http(url, target)
    return target


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_archive(archive: Path, options: argparse.Namespace, digest: str) -> None:
    """Raises UsageError for another file than the one that was asked for."""
    with archive.open("rb") as file:
        title = html_title(file.read(4096))
    if title is not None:
        raise UsageError(
            f"--url {options.url}: an HTML page{title} instead of a file; it may be over its download quota: try again "
            "later, or get it in a browser and give --url file:///..."
        )
    if options.sha256 and digest != options.sha256.lower():
        raise UsageError(f"--sha256 {options.sha256}: the file at {options.url} has {digest}; it is not used")


def unpack(archive: Path, out: Path, sets: set[str]) -> list[str]:
    """Unpack the folders of checkpoints of these data sets; each appears in `out` whole. Returns their names.

    Raises:
        UsageError: for a damaged archive, and one that tries to write elsewhere or to make links. Nothing is left then.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=out) as scratch:
        try:
            found = extract(archive, Path(scratch), sets)
        except Exception as error:  # tarfile and the decompressors promise no closed list of errors
            if isinstance(error, OSError) and error.errno is not None:  # of the disk; the decompressors' have no number
                raise
            reason = " ".join(str(error).split())
            raise UsageError(f"{archive}: refused or damaged ({type(error).__name__}: {reason})") from error
        if not found:
            raise UsageError(f"{archive}: holds no folder of {', '.join(sorted(sets))}, like "
                             "cifar100_nfg50_ncls2_nproto20_mtl_exp01")  # fmt: skip
        for name, place in found.items():
            if not (out / name).exists():
                os.rename(Path(scratch, place), out / name)
    return sorted(found)


def extract(archive: Path, scratch: Path, sets: set[str]) -> dict[str, str]:
    """Extract the wanted folders below `scratch`: folder name -> its path there."""
    found: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.rstrip("/").split("/")
            if member.name.startswith("/") or "\\" in member.name or ".." in parts:
                raise ValueError(f"{member.name!r} is not below the folder to unpack to")
            if not (member.isfile() or member.isdir()):
                raise ValueError(f"{member.name!r} is a link or a device")
            matches = [FOLDER_NAME.fullmatch(part) for part in parts[: None if member.isdir() else -1]]
            depth = next((i for i, match in enumerate(matches) if match and match[1] in sets), None)
            if depth is None:
                continue
            place = "/".join(parts[: depth + 1])
            if found.setdefault(parts[depth], place) != place:
                raise ValueError(f"two folders are called {parts[depth]}")
            tar.extract(member, scratch, filter="data")
        while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
            pass
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    try:
        print("\n".join(get(parse_args(arguments))))
    except UsageError as error:
        print(f"download_checkpoints.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
