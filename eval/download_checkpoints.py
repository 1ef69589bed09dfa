"""Downloads checkpoints of the authors' code and unpacks them.

    python eval/download_checkpoints.py                                  all three sets from their Google Drive
    python eval/download_checkpoints.py --set cifar100 --url http://.../logs.tar.gz --sha256 0123...

An interrupted download is continued by the same command. OUT gets the folders that are named like
cifar100_nfg50_ncls2_nproto20_mtl_exp01, each whole or not at all. Exit status: 0 done, 1 the disk failed, 2 change
something.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mnemonics.config.command_line import check_setting
from mnemonics.engine.errors import UsageError, command
from mnemonics.legacy.authors import DATASETS
from mnemonics.legacy.fetch import fetch, unpack
from mnemonics.reporting.evaluation import check_out

DRIVE_URL = "https://drive.google.com/file/d/1sKO2BOssWgTFBNZbM50qDzgk6wqg4_l8/view"
URL = re.compile(r"file://.*|https?://\w[!-Z^-~]*", re.ASCII | re.DOTALL)  # [!-Z^-~]: visible ASCII without brackets


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises UsageError for values that make no sense."""
    parser = argparse.ArgumentParser(
        prog="download_checkpoints.py", description="Download the authors' checkpoints.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--set", default="all", choices=(*DATASETS, "all"), help="which of them to unpack (%(default)s)")
    add("--url", default=DRIVE_URL, help="a tar archive: http(s), file or Google Drive (%(default)s)")
    add("--out", default="checkpoints", help="folder for the checkpoints (%(default)s)")
    add("--sha256", help="refuse the archive unless this is its SHA-256 (64 hexadecimal digits)")
    options = parser.parse_args(arguments)
    check_setting("out", options.out)
    check_out(Path(options.out))
    if options.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", options.sha256):
        raise UsageError(f"--sha256 {options.sha256}: needed are 64 hexadecimal digits")
    if not URL.fullmatch(options.url):
        raise UsageError(f"--url {options.url}: http://..., https://... or file:///... would work")
    return options


@command("download_checkpoints.py")
def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_args(arguments)
    out, url, sets = Path(options.out), options.url, list(DATASETS) if options.set == "all" else [options.set]
    name = hashlib.sha256(f"{options.set} {url}".encode()).hexdigest()[:12]
    archive, record = out / f".download-{name}", out / f".downloaded-{name}"  # record: the folders that it brought
    by_hand = url == DRIVE_URL and all(any(out.glob(f"{dataset}_nfg*")) for dataset in sets)
    if by_hand or (record.exists() and all((out / folder).is_dir() for folder in record.read_text().splitlines())):
        print(f"{out}: the checkpoints are there already")
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        fetch(url, archive)
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        print(f"{archive.stat().st_size} bytes, SHA-256 {digest}", flush=True)
        if options.sha256 and digest != options.sha256.lower():
            raise UsageError(f"--sha256 {options.sha256}: the file at {url} has {digest}; it is not used")
        folders = unpack(archive, out, sets)
    except UsageError:  # a disk that fails, or Ctrl-C, leaves the archive there for the same command
        archive.unlink(missing_ok=True)
        raise
    record.write_text("\n".join(folders))
    archive.unlink()
    absent = [s for s in sets if not any(folder.startswith(f"{s}_nfg") for folder in folders)]
    print(*(out / folder for folder in folders), *(f"not in the archive: {s}" for s in absent), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
