"""What data set a run was made with: its classes, how many images each has, and a fingerprint of their contents.

Runs resume, share models, are evaluated and averaged by the name of a data set, and two data sets can have one name.
"""

import hashlib
import os
from typing import Any

import torch
from torch import Tensor

from mnemonics.data.image_source import Images, ImageSource
from mnemonics.data.images import spread, usage_errors
from mnemonics.engine.errors import UsageError

SAMPLE = 1024  # files of a split whose sizes and bytes count, evenly spaced: all of a small data set
Identity = dict[str, Any]  # as checkpoints and results.json hold it


def identity_of(source: ImageSource) -> Identity:
    """Class names in the order of their ids, images of each class for training and test, and 16 hex digits of a SHA-256
    over all of that and the images: all pixels of images in memory; of files the names, and size and bytes of a sample.
    Also what a network that was trained on it needs to be shown other images.

    Raises:
        UsageError: for a file that cannot be read any more.
    """
    splits = ((source.train_images, source.train_class_ids), (source.test_images, source.test_class_ids))
    digest = hashlib.sha256("\0".join(source.class_names).encode(errors="surrogateescape"))
    for images, class_ids in splits:
        digest.update(class_ids.numpy().tobytes())
        add_images(digest, images)
    train, test = (torch.bincount(class_ids, minlength=source.num_classes).tolist() for _, class_ids in splits)
    counts = {"train_images": train, "test_images": test}
    shown = {"image_size": source.image_size, "mean": [*source.mean], "std": [*source.std], "mirror": source.mirror}
    return {"class_names": list(source.class_names), **counts, "fingerprint": digest.hexdigest()[:16], **shown}


def add_images(digest: Any, images: Images) -> None:
    if isinstance(images, Tensor):
        digest.update(images.numpy().data)
        return
    names = images.names[images.rows.numpy()]
    digest.update(b"\0".join(names.tolist()))
    for i in spread(len(names), SAMPLE):
        with usage_errors("--data_dir"):
            content = (images.root / os.fsdecode(names[i])).read_bytes()
        digest.update(len(content).to_bytes(8, "little") + content)


def difference(stored: Identity, now: Identity) -> str:
    """In words, how two data sets differ; empty where they do not."""
    if stored["fingerprint"] == now["fingerprint"]:
        return ""
    theirs, ours = (set(identity["class_names"]) for identity in (stored, now))
    if only := sorted(theirs ^ ours):
        example = f"{only[0]!r}, which is {'not there any more' if only[0] in theirs else 'new'}"
        return f"{len(theirs)} classes there, {len(ours)} now, for example {example}"
    if stored["class_names"] != now["class_names"]:
        return "the same classes in another order"
    for split in ("train_images", "test_images"):
        if stored[split] != now[split]:
            return f"{sum(stored[split])} {split.replace('_', ' ')} there, {sum(now[split])} now"
    return "images with other contents"


def order_by_name(order: tuple[int, ...], stored: Identity, now: Identity) -> tuple[int, ...]:
    """A class order of class ids in `stored` as one of class ids in `now`, which may have more: by their names.

    Raises:
        UsageError: where a class is missing.
    """
    if not set(stored["class_names"]) <= set(now["class_names"]):
        raise UsageError(f"--data_dir: not the classes that the network was trained on ({difference(stored, now)})")
    ids = {name: class_id for class_id, name in enumerate(now["class_names"])}
    return tuple(ids[stored["class_names"][class_id]] for class_id in order)
