"""Which class each image of an unsorted validation set belongs to: ILSVRC2012's devkit, or Tiny-ImageNet's list."""

import io
import re
import tarfile
from pathlib import Path

from mnemonics.engine.errors import UsageError

WNID = re.compile(r"n\d{8}")
DEVKIT = "ILSVRC2012_devkit_t12"
ANNOTATIONS = "val_annotations.txt"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"


def validation_labels(src: Path, devkit: Path | None) -> dict[str, str]:
    """File name -> wnid, from `devkit`, else from val/val_annotations.txt, else from the devkit in `src`.

    Raises:
        UsageError: where none of them is there, or the one that is there is damaged.
    """
    annotations = src / "val" / ANNOTATIONS
    if devkit is None and annotations.is_file():
        return annotation_labels(annotations, f"--src {src}")
    places = (src / DEVKIT, src / f"{DEVKIT}.tar.gz") if devkit is None else (devkit,)
    for place in places:
        if place.exists():
            return devkit_labels(place, f"--src {src}" if devkit is None else f"--devkit {devkit}")
    if devkit is not None:
        raise UsageError(f"--devkit {devkit}: is not there; {DEVKIT}.tar.gz or the folder unpacked from it would work")
    raise UsageError(
        f"--src {src}: its validation images are not sorted by class, and nothing says which class they are; put "
        f"{DEVKIT}.tar.gz there or name it with --devkit, or sort them into val/<wnid>/"
    )


def annotation_labels(path: Path, flag: str) -> dict[str, str]:
    """Read lines `file<TAB>wnid<TAB>...`. Raises UsageError."""
    labels = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            name, wnid = [*line.split("\t"), "", ""][:2]
            if line.strip() and not WNID.fullmatch(wnid):
                raise ValueError(f"line {number} is not like val_0.JPEG<TAB>n03444034")
            labels[name] = wnid
    except (OSError, ValueError) as error:
        raise UsageError(f"{flag}: {path} cannot be used ({error}); get it again, or give --devkit") from error
    labels.pop("", None)
    return labels


def devkit_labels(path: Path, flag: str) -> dict[str, str]:
    """Read the devkit, an archive or the folder unpacked from it: the k-th line of the truth is for image number k.

    torchvision has a parser too, but it takes only the archive with the official MD5 and writes into the folder of it.

    Raises:
        UsageError: where it is damaged or something else.
    """
    from scipy.io import loadmat  # here: most runs do not need it

    try:
        meta, truth = devkit_files(path)
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        # the entries with children are inner nodes of WordNet, of which there are no images
        wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
        in_order = [wnids[int(line)] for line in truth.decode("ascii").split()]
        if not in_order or not all(WNID.fullmatch(wnid) for wnid in wnids.values()):
            raise ValueError("no list of classes")
    except Exception as error:  # tarfile, gzip and loadmat promise no closed list of errors
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"{flag}: {path} is damaged or not the devkit ({reason}); download it again") from error
    return {f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(in_order, 1)}


def devkit_files(path: Path) -> tuple[bytes, bytes]:
    """The contents of meta.mat and of the ground truth; nothing is unpacked to disk. Raises many kinds of errors."""
    if path.is_dir():
        return (path / META).read_bytes(), (path / TRUTH).read_bytes()
    found = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg() and member.name.endswith((f"/{META}", f"/{TRUTH}")):
                found[member.name.split("/", 1)[1]] = tar.extractfile(member).read()
        while tar.fileobj.read(2**20):  # gzip's checksum is at the very end, where tar never looks
            pass
    return found[META], found[TRUTH]
