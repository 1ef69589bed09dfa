"""Downloading the authors' checkpoints: servers that break off, archives that are damaged or malicious."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading
from pathlib import Path

import gdown
import numpy as np
import pytest

from eval import download_checkpoints


def tar_of(entries, suffix="gz"):
    """A tar archive of {name: content or what the name is a link to, with its type}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{suffix}") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            else:
                info.type, info.linkname = content
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8).tobytes()  # does not compress
CIFAR = "cifar100_nfg50_ncls2_nproto20_mtl_exp01"
IMAGENET = "imagenet_sub_nfg50_ncls2_nproto20_mtl_exp01"
WHOLE = {f"{CIFAR}/model": NOISE, f"{CIFAR}/x": b"x", f"{IMAGENET}/model": b"network"}
ARCHIVE = tar_of({"logs/notes.txt": b"hello"} | {f"logs/{name}": content for name, content in WHOLE.items()})
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; `server.faults` holds, per request, after how many bytes to break off (None: do not)."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        body, total = server.body[start:], len(server.body)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        return self.wfile.write(body[: server.faults.pop(0) if server.faults else None])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.status, server.ranges, server.faults, server.asked = ARCHIVE, 200, True, [], []
        server.handle_error = lambda *_: None  # gdown hangs up on a connection that it does not go on with
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def download(server, tmp_path, monkeypatch, capsys):
    """Runs download_checkpoints.py on the server's archive. Returns what it prints or, with status 2, the one line of
    its message."""
    monkeypatch.setattr("random.uniform", lambda *_: 0)

    def download(*arguments, status=0):
        url = f"http://127.0.0.1:{server.server_address[1]}/logs.tar.gz"
        assert download_checkpoints.main(["--url", url, "--out", str(tmp_path / "out"), *arguments]) == status
        out, error = capsys.readouterr()
        assert error.count("\n") == (status > 0)
        return error if status else out

    return download


def contents(folder):
    """The files below a folder, without the records of what was downloaded."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(".downloaded-")}


def test_download_unpacks_whole_folders_once(download, server, tmp_path):
    download("--set", "imagenet_sub")
    assert contents(tmp_path / "out").keys() == {f"{IMAGENET}/model"}
    out = download("--sha256", SHA256.upper())
    assert SHA256 in out
    assert "not in the archive: imagenet\n" in out
    assert contents(tmp_path / "out") == WHOLE
    assert "there already" in download()
    assert len(server.asked) == 2
    shutil.rmtree(tmp_path / "out" / IMAGENET)
    download()
    assert contents(tmp_path / "out") == WHOLE


def test_a_dropped_connection_is_taken_up_where_it_broke(download, server, tmp_path):
    """By the same command and, after it gave up, by the next one."""
    server.faults = [700_000, *[0] * 4]
    assert "the same command continues" in download(status=2)
    (part,) = (tmp_path / "out").glob(".download-*.part")
    size, server.faults = part.stat().st_size, [None, 600_000]
    assert 0 < size <= 700_000
    assert server.asked[1:] == [f"bytes={size}-"] * 4
    server.asked = []
    download()
    assert server.asked == [None, f"bytes={size}-", f"bytes={size + 2**19}-"]  # gdown keeps whole pieces of 512 KiB
    assert contents(tmp_path / "out") == WHOLE


def test_what_cannot_be_continued_is_begun_anew(download, server, tmp_path):
    server.faults = [700_000, *[0] * 4]
    download(status=2)
    server.ranges = False
    assert "starts anew without" in download(status=2)
    server.ranges, server.body = True, tar_of({f"{CIFAR}/model": b"new" + NOISE})
    assert "refused or damaged" in download(status=2)  # half of it was of another file
    download()
    assert contents(tmp_path / "out") == {f"{CIFAR}/model": b"new" + NOISE}


SERVERS = {  # what a server does -> words of the message
    "not found": ({"status": 404}, "404 Client Error: Not Found"),
    "busy": ({"status": 503}, "503 Server Error"),
    "page": ({"body": b"<!DOCTYPE html><html>"}, "refused or damaged"),
    "empty": ({"body": b""}, "refused or damaged"),
    "truncated gzip": ({"body": ARCHIVE[:-200_000]}, "refused or damaged"),
    "truncated tar": ({"body": tar_of(WHOLE, "")[:-200_000]}, "refused or damaged"),
    "wrong checksum": ({"body": ARCHIVE[:-8] + b"12345678"}, "refused or damaged"),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_a_server_without_a_whole_archive(kind, download, server, tmp_path):
    attributes, message = SERVERS[kind]
    vars(server).update(attributes)
    assert message in download(status=2)
    assert contents(tmp_path / "out") == {}


EVIL = {  # what else is in an archive -> whether the archive is refused
    "dots": ({f"logs/{CIFAR}/../../../escaped": b"bad"}, True),
    "dots elsewhere": ({"../../escaped": b"bad"}, False),
    "absolute": ({"{tmp}/escaped": b"bad"}, False),
    "symbolic link": ({f"logs/{CIFAR}/l": (tarfile.SYMTYPE, "../../..")}, True),
    "through a link": ({f"l/{CIFAR}": (tarfile.SYMTYPE, "/tmp"), f"l/{CIFAR}/escaped": b"bad"}, True),
    "hard link": ({f"logs/{CIFAR}/l": (tarfile.LNKTYPE, "/etc/passwd")}, True),
    "device": ({f"logs/{CIFAR}/l": (tarfile.FIFOTYPE, "")}, True),
}


@pytest.mark.parametrize("kind", EVIL)
def test_nothing_of_a_malicious_archive_comes_elsewhere(kind, download, server, tmp_path):
    (entries, is_refused), fine = EVIL[kind], {f"{CIFAR}/a": b"fine"}
    server.body = tar_of(fine | {name.format(tmp=tmp_path): content for name, content in entries.items()})
    if is_refused:
        assert "refused or damaged" in download(status=2)
    else:
        download()
    assert contents(tmp_path / "out") == ({} if is_refused else fine)
    assert not any(p.is_symlink() or p.is_fifo() or p.name == "escaped" for p in tmp_path.rglob("*"))


def test_files_and_mistakes_in_flags(download, tmp_path):
    archive = tmp_path / "my logs.tar"
    archive.write_bytes(ARCHIVE)
    mine = ("--url", archive.as_uri())
    for flags, message in (
        (("--url", (tmp_path / "none").as_uri()), "there is no such file"),
        (("--url", "ftp://a/b"), "--url ftp://a/b: http://..., https://"),
        ((*mine, "--sha256", "abc"), "--sha256 abc: needed are 64 hexadecimal digits"),
        ((*mine, "--sha256", "0" * 64), f"has {SHA256}; it is not used"),
        ((*mine, "--set", "imagenet"), "holds no folder of imagenet, like"),
        ((*mine, "--out", "/dev/null/x"), "--out /dev/null/x: cannot be written"),
    ):
        assert message in download(*flags, status=2)
    download(*mine)
    assert contents(tmp_path / "out") == WHOLE
    assert archive.read_bytes() == ARCHIVE  # it is not ours


def test_google_drive_goes_through_gdown(download, tmp_path, monkeypatch):
    calls = []

    def gdown_download(url, output, **_):
        calls.append(url)
        if len(calls) == 1:
            raise gdown.exceptions.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed")
        Path(output).write_bytes(ARCHIVE)

    monkeypatch.setattr(gdown, "download", gdown_download)
    url = download_checkpoints.DRIVE_URL
    assert "Failed to retrieve file url: Too many users have viewed" in download("--url", url, status=2)
    download("--url", url)
    assert contents(tmp_path / "out") == WHOLE
    assert calls == [url] * 2
