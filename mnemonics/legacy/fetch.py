"""Downloads an archive, continuing where an earlier try stopped, and unpacks the authors' checkpoints in it."""

import functools
import shutil
import tarfile
import tempfile
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit
from urllib.request import url2pathname

import gdown
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from mnemonics.engine.errors import UsageError
from mnemonics.legacy.authors import EXAMPLE, FOLDER_NAME

PAUSES = (1, 2, 4, 8)  # seconds before each further try
TIMEOUT = 60  # seconds without an answer


def fetch(url: str, target: Path) -> None:
    """Download `url` to `target`, which appears there when it is whole. Of a local file (file://...) it becomes a link,
    which can be removed like a download.

    Raises:
        UsageError: for a missing file, and a server that refuses, sends an HTML page, or keeps breaking off.
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
        if urlsplit(url).hostname in ("drive.google.com", "docs.google.com"):
            gdown.download(url, str(target), resume=True, use_cookies=False, timeout=TIMEOUT, retries=len(PAUSES))
        elif not target.exists():
            fetch_http(url, target)
    except (gdown.exceptions.DownloadError, requests.RequestException, HTTPError) as error:
        reason = " ".join(str(error).split())
        hint = "the same command continues, or get the file in a browser and give --url file:///..."
        raise UsageError(f"--url {url}: the download failed ({reason}); {hint}") from error


def fetch_http(url: str, target: Path) -> None:
    """As `fetch`, but raises the error of the last try. <target>.part is the beginning of the file, and
    <target>.version what the server calls the version of the file that it is of."""
    part, version = (target.with_name(target.name + end) for end in (".part", ".version"))
    for pause in (*PAUSES, None):
        try:
            receive(url, part, version)
            break
        except (requests.RequestException, HTTPError):
            if pause is None:
                raise
            time.sleep(pause)
    part.replace(target)
    version.unlink(missing_ok=True)


def receive(url: str, part: Path, version: Path) -> None:
    """One request: add to `part` what is missing. Raises UsageError where trying again does not help."""
    resume = {}  # of another version than this one the server sends all
    if part.exists() and version.exists() and version.read_text():
        resume = {"Range": f"bytes={part.stat().st_size}-", "If-Range": version.read_text()}
    headers = resume | {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416 and resume:
            return  # nothing is missing: an earlier command ended just before the renaming
        if 400 <= response.status_code < 500:
            raise UsageError(f"--url {url}: the server answers {response.status_code} {response.reason}")
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise UsageError(f"--url {url}: an HTML page instead of a file; try again later, or another --url")
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            start = file.tell()
            if start == 0:
                version.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified", ""))
            total = start + int(response.headers.get("Content-Length", 0)) or None
            with tqdm.wrapattr(file, "write", total, desc="download", initial=start, disable=None) as shown:
                shutil.copyfileobj(response.raw, shown)


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
