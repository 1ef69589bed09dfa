"""Downloads an archive, continuing where an earlier try stopped, and unpacks the authors' checkpoints in it."""

import functools
import sys
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from urllib.request import url2pathname

import gdown
import requests

from mnemonics.engine.errors import UsageError
from mnemonics.legacy.authors import EXAMPLE, FOLDER_NAME

PATIENCE = {"timeout": 60, "retries": 4}  # seconds without an answer; further tries after a broken connection


def fetch(url: str, target: Path) -> None:
    """Download `url` to `target`, which appears there when it is whole; until then what has come is in a file
    <target>*.part. Of a local file (file://...) it becomes a link, which can be removed like a download.

    Raises:
        UsageError: for a missing file, and a server that refuses or keeps breaking off.
        OSError: where `target` cannot be written.
    """
    if url.startswith("file://"):
        path = Path(url2pathname(url.removeprefix("file://"))).absolute()
        if not path.is_file():
            raise UsageError(f"--url {url}: there is no such file")
        target.unlink(missing_ok=True)
        target.symlink_to(path)
        return
    quiet = not sys.stderr.isatty()
    try:
        gdown.download(url, str(target), quiet=quiet, use_cookies=False, resume=True, **PATIENCE)
    except (gdown.exceptions.DownloadError, requests.RequestException) as error:
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
