"""Downloads one file, over HTTP or from Google Drive, and continues where an earlier try stopped."""

import errno
import http.client
import json
import re
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from mnemonics.engine.errors import UsageError
from mnemonics.engine.files import write_json
from mnemonics.legacy.checkpoints import html_title

TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the first of them, doubled each time
TIMEOUT = 60  # seconds without an answer
CHUNK = 2**18
OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # errors of the disk: trying again does not help


def fetch_http(url: str, target: Path) -> None:
    """Download `url` to `target`, which appears there when it is whole; until then the bytes are in <target>.part.

    Raises:
        UsageError: where the server refuses, sends an HTML page, or keeps breaking off.
        OSError: where `target` cannot be written.
    """
    part, failures = target.with_name(target.name + ".part"), 0
    if target.exists():
        return
    while True:
        before = size_of(part)
        try:
            reason = receive(url, part)
        except HTTPError as error:
            error.close()
            if error.code < 500:
                raise UsageError(f"--url {url}: the server answers {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (URLError, http.client.HTTPException, OSError) as error:
            if getattr(error, "errno", None) in OURS:
                raise
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if reason is None:
            break
        failures = 0 if size_of(part) > before else failures + 1
        if failures == TRIES:
            raise UsageError(f"--url {url}: the download stopped after {size_of(part)} bytes ({reason}); what is there "
                             "is kept, the same command continues")  # fmt: skip
        time.sleep(PAUSE * (2**failures - 1))
    part.replace(target)
    facts_file(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def facts_file(part: Path) -> Path:
    """Where it is noted which version of the file `part` is the beginning of."""
    return part.with_name(part.name + ".json")


def receive(url: str, part: Path) -> str | None:
    """One request: append to `part` what is missing. Returns None when it is whole, otherwise why not."""
    start, known = size_of(part), {}
    if start:
        try:
            known = json.loads(facts_file(part).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            start = 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if known.get("version"):
            headers["If-Range"] = known["version"]  # of another version the server sends all
    try:
        with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as response:
            refuse_html(url, response)
            return append(response, part, start, known)
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()  # nothing is left to send: it is whole, or another file
        if error.headers.get("Content-Range") == f"bytes */{start}" and known.get("total") == start:
            return None
        part.unlink()
        return "the file has changed"


def refuse_html(url: str, response: http.client.HTTPResponse) -> None:
    """Raises UsageError for an HTML page. No archive is sent as one."""
    if response.headers.get_content_type() == "text/html":
        title = html_title(response.read(4096)) or ""
        raise UsageError(f"--url {url}: an HTML page{title} instead of a file; try again later, or another --url")


def append(response: http.client.HTTPResponse, part: Path, start: int, known: dict) -> str | None:
    """Write the body to `part` from byte `start` on, from 0 if the server sends all. Returns as `receive`."""
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if version and version.startswith("W/"):
        version = response.headers.get("Last-Modified")
    if response.status == 206:
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if not sent or int(sent[1]) != start or int(sent[2]) != known.get("total"):
            part.unlink()
            return "the server sent another part than the one asked for"
        total = int(sent[2])
    else:
        length = response.headers.get("Content-Length")
        start, total = 0, int(length) if length else None
        part.write_bytes(b"")
        write_json(facts_file(part), {"version": version, "total": total})
    with (
        part.open("ab") as file,
        tqdm(desc="download", initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    return None if total in (None, size_of(part)) else f"{size_of(part)} of {total} bytes came"


def fetch_drive(file_id: str, target: Path) -> None:
    """Download a file of Google Drive to `target` through gdown, which continues by itself. Raises UsageError."""
    import gdown  # here: it takes half a second that other downloads need not wait for
    import requests

    try:
        gdown.download(id=file_id, output=str(target), resume=True, use_cookies=False, timeout=TIMEOUT, retries=TRIES)
    except (gdown.exceptions.DownloadError, requests.RequestException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"Google Drive, file {file_id}: the download failed ({reason}); try again later, or get the file in a "
            "browser and give --url file:///..."
        ) from error
