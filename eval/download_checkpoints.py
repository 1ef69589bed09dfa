"""Downloads checkpoints of the authors' code and unpacks them.

    python eval/download_checkpoints.py                                  all three sets from their Google Drive
    python eval/download_checkpoints.py --set cifar100 --url http://.../logs.tar.gz

An interrupted download is continued by the same command. OUT gets the folders that are named like
cifar100_nfg50_ncls2_nproto20_mtl_exp01, each whole or not at all. Exit status: 0 done, 1 the disk failed, 2 change
something.
"""

import argparse
import functools
import hashlib
import sys
import tarfile
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from urllib.request import url2pathname

import gdown
import requests

from mnemonics.config.command_line import check_setting
from mnemonics.engine.errors import UsageError, command, printable
from mnemonics.legacy.authors import DATASETS, EXAMPLE, FOLDER_NAME
from mnemonics.reporting.evaluation import check_out

DRIVE_URL = "https://drive.google.com/file/d/1sKO2BOssWgTFBNZbM50qDzgk6wqg4_l8/view"
PATIENCE = {"timeout": 60, "retries": 4}  # seconds without an answer; further tries after a broken connection


def fetch(url: str, target: Path) -> None:
    """Download `url` to `target`, which appears there when it is whole; until then what has come is in a file
    <target>*.part. Of a local file (file://...) it becomes a link, which can be removed like a download.

    Raises:
        UsageError: for a missing file, an address that is none, and a server that refuses or keeps breaking off.
        OSError: where `target` cannot be written.
    """
    if url.startswith("file://"):
        path = Path(url2pathname(url.removeprefix("file://"))).absolute()
        if not path.is_file():
            raise UsageError(f"--url {url}: there is no such file")
        target.unlink(missing_ok=True)
        target.symlink_to(path)
        return
    try:
        gdown.download(url, str(target), quiet=not sys.stderr.isatty(), use_cookies=False, resume=True, **PATIENCE)
    except (gdown.exceptions.DownloadError, requests.RequestException, ValueError) as error:
        raise UsageError(
            f"--url {url}: the download failed ({' '.join(str(error).split())}); the same command continues, and "
            f"starts anew without {target}*.part; or get the file in a browser and give --url file:///..."
        ) from error


def unpack(archive: Path, out: Path, sets: Collection[str]) -> list[str]:
    """Unpack the folders of checkpoints of these data sets; each appears in `out` whole. Returns their names.

    Raises:
        UsageError: for a damaged archive, and one that tries to write elsewhere or to make links. Nothing is left then.
        OSError: where `out` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=out) as scratch:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter=functools.partial(wanted, sets))
                while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
                    pass
        except Exception as error:  # tarfile and the decompressors promise no closed list of errors
            if isinstance(error, OSError) and error.errno is not None:  # of the disk; the decompressors' have no number
                raise
            raise UsageError(f"{archive.resolve()}: refused or damaged ({error!r:.200})") from error
        folders = sorted(Path(scratch).iterdir())
        if not folders:
            raise UsageError(f"{archive.resolve()}: holds no folder of {', '.join(sets)}, like {EXAMPLE}")
        for folder in folders:
            if not (out / folder.name).exists():
                folder.rename(out / folder.name)
    return [folder.name for folder in folders]


def wanted(sets: Collection[str], member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
    """tarfile's filter: a member of a folder of checkpoints, placed in `path` with this folder; None for any other.

    Raises:
        tarfile.FilterError: for links, devices, and what would not be in `path`.
    """
    if not (member.isfile() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    parts = PurePosixPath(member.name).parts
    for depth, name in enumerate(parts if member.isdir() else parts[:-1]):
        found = FOLDER_NAME.fullmatch(name)
        if found and found["dataset"] in sets:
            return tarfile.data_filter(member.replace(name="/".join(parts[depth:])), path)
    return None


@command("download_checkpoints.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Download and unpack, unless there is a folder of each set."""
    parser = argparse.ArgumentParser(description="Download the authors' checkpoints.", allow_abbrev=False)
    add = parser.add_argument
    add("--set", default="all", choices=(*DATASETS, "all"), help="which of them to unpack (%(default)s)")
    add("--url", default=DRIVE_URL, help="a tar archive: http(s), file or Google Drive (%(default)s)")
    add("--out", default="checkpoints", help="folder for the checkpoints (%(default)s)")
    options = parser.parse_args(arguments)
    check_setting("out", options.out)
    out, url, sets = Path(options.out), options.url, DATASETS if options.set == "all" else [options.set]
    check_out(out)
    if all(any(out.glob(f"{dataset}_nfg*")) for dataset in sets):
        print(f"{out}: the checkpoints are there already")
        return
    archive = out / f".download-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    try:
        fetch(url, archive)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{archive.stat().st_size} bytes, SHA-256 {digest}", flush=True)
        folders = unpack(archive, out, sets)
    except UsageError:  # a disk that fails, or Ctrl-C, leaves the archive there for the same command
        archive.unlink(missing_ok=True)
        raise
    archive.unlink()
    absent = [s for s in sets if not any(folder.startswith(f"{s}_nfg") for folder in folders)]
    there = [printable(str(out / folder)) for folder in folders]
    print(*there, *(f"not in the archive: {s}" for s in absent), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
