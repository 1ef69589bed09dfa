"""Downloading the authors' checkpoints: servers that break off, archives that are damaged or malicious."""

import hashlib
import http.server
import io
import shutil
import tarfile
import threading

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


@pytest.fixture
def download(tmp_path, monkeypatch, capsys):
    """Runs download_checkpoints.py on an address, or on a local file with a content. Returns what it prints or, with
    status 2, the one line of its message."""
    monkeypatch.setattr("random.uniform", lambda *_: 0)  # how long gdown waits before it tries again

    def download(source, *arguments, status=0):
        file = tmp_path / "my logs.tar"
        if isinstance(source, bytes):
            file.write_bytes(source)
        url = file.as_uri() if isinstance(source, bytes) else source
        assert download_checkpoints.main(["--url", url, "--out", str(tmp_path / "out"), *arguments]) == status
        out, error = capsys.readouterr()
        assert error.count("\n") == (status > 0)
        return error if status else out

    return download


def contents(folder):
    """The files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; `server.faults` holds, per request, after how many bytes to break off (None: do not)."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if self.path != "/logs":
            return self.send_error(404)
        start = int(asked[6:-1]) if asked else 0
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
        server.body, server.faults, server.asked = ARCHIVE, [700_000, *[0] * 4], []
        server.handle_error = lambda *_: None  # gdown hangs up on a connection that it does not go on with
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}/logs"
        yield server
        server.shutdown()
        thread.join()


def test_an_interrupted_download_is_continued(download, server, tmp_path):
    """By the same command and, after it gave up, by the next one."""
    assert "the same command continues" in download(server.url, status=2)
    (part,) = (tmp_path / "out").glob(".download-*.part")
    size, server.faults = part.stat().st_size, [None, 600_000]
    assert 0 < size <= 700_000
    assert server.asked[1:] == [f"bytes={size}-"] * 4
    server.asked = []
    download(server.url)
    assert server.asked == [None, f"bytes={size}-", f"bytes={size + 2**19}-"]  # gdown keeps whole pieces of 512 KiB
    assert contents(tmp_path / "out") == WHOLE
    assert "404 Client Error: Not Found" in download(f"{server.url}/none", status=2)


def test_whole_folders_are_unpacked_once(download, tmp_path):
    download(ARCHIVE, "--set", "imagenet_sub")
    assert contents(tmp_path / "out").keys() == {f"{IMAGENET}/model"}
    out = download(ARCHIVE)
    assert hashlib.sha256(ARCHIVE).hexdigest() in out
    assert "not in the archive: imagenet\n" in out
    assert contents(tmp_path / "out") == WHOLE
    assert "there already" in download(ARCHIVE, "--set", "imagenet_sub")
    shutil.rmtree(tmp_path / "out" / IMAGENET)
    download(ARCHIVE, "--set", "imagenet_sub")
    assert contents(tmp_path / "out") == WHOLE
    assert (tmp_path / "my logs.tar").read_bytes() == ARCHIVE  # it is not ours


FINE = {f"{CIFAR}/a": b"fine"}
REFUSED = {  # the content of an archive
    "page": b"<!DOCTYPE html><html>",
    "empty": b"",
    "truncated gzip": ARCHIVE[:-200_000],
    "truncated tar": tar_of(WHOLE, "")[:-200_000],
    "wrong checksum": ARCHIVE[:-8] + b"12345678",
    "dots": tar_of(FINE | {f"logs/{CIFAR}/../../../escaped": b"bad"}),
    "symbolic link": tar_of(FINE | {f"logs/{CIFAR}/l": (tarfile.SYMTYPE, "../../..")}),
    "through a link": tar_of(FINE | {f"l/{CIFAR}": (tarfile.SYMTYPE, "/tmp"), f"l/{CIFAR}/escaped": b"bad"}),
    "hard link": tar_of(FINE | {f"logs/{CIFAR}/l": (tarfile.LNKTYPE, "/etc/passwd")}),
    "device": tar_of(FINE | {f"logs/{CIFAR}/l": (tarfile.FIFOTYPE, "")}),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_of_a_damaged_or_malicious_archive_nothing_is_unpacked(kind, download, tmp_path):
    assert "refused or damaged" in download(REFUSED[kind], status=2)
    assert contents(tmp_path) == {"my logs.tar": REFUSED[kind]}


def test_what_lies_elsewhere_in_an_archive_is_left_there(download, tmp_path):
    download(tar_of(FINE | {"../../escaped": b"bad", f"{tmp_path}/escaped": b"bad"}))
    assert contents(tmp_path / "out") == FINE
    assert not any(p.name == "escaped" for p in tmp_path.rglob("*"))


def test_mistakes_in_flags(download, tmp_path):
    for flags, message in (
        (((tmp_path / "none").as_uri(),), "there is no such file"),
        (("ftp://a/b",), "--url ftp://a/b: the download failed (No connection adapters"),
        ((ARCHIVE, "--set", "imagenet"), "holds no folder of imagenet, like"),
        ((ARCHIVE, "--out", "/dev/null/x"), "--out /dev/null/x: cannot be written"),
    ):
        assert message in download(*flags, status=2)


def test_google_drives_refusals_are_told(download, monkeypatch):
    def refuse(*_, **__):
        raise gdown.exceptions.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed")

    monkeypatch.setattr(gdown, "download", refuse)
    message = "Failed to retrieve file url: Too many users have viewed"
    assert message in download(download_checkpoints.DRIVE_URL, status=2)
