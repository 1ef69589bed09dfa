"""`python -m mnemonics predict RUN IMAGE...`: what the network of a run takes image files for, without its data set."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mnemonics.config.command_line import check_setting
from mnemonics.data.batches import Preprocessing
from mnemonics.data.digits import as_digit
from mnemonics.data.files import read_images
from mnemonics.data.images import usage_errors
from mnemonics.engine.device import pick_device, prepare
from mnemonics.engine.errors import UsageError, command, printable
from mnemonics.evaluation import class_means, scores
from mnemonics.experiment.stored import Target, own_target
from mnemonics.reporting.text import CLASSIFIERS, render_table

SCORES = {"cnn": "probability", "nme": "cosine"}  # classifier -> what its scores are


def predictions(target: Target, images: Sequence[Path], classifier: str, device: torch.device) -> tuple[list, Tensor]:
    """The names of the classes known after the last phase, and their scores for each image, float [n, classes]: of
    "cnn" probabilities (softmax), of "nme" cosines. Raises UsageError where an image or what it takes is not there."""
    (index, file), data, size = max(target.files.items()), target.data or {}, target.config.eval_batch_size
    if index < 0:
        raise UsageError(f"{file}: no phase of this run is finished")
    if not {"class_names", "image_size", "mean", "std", "mirror"} <= data.keys():
        why = "older versions did not store what classes are called and how images are shown; nor do the authors' files"
        raise UsageError(f"{file}: {why}. eval/evaluate.py takes it, with the data set")
    loaded, means = target.load(index, file, device), {}
    prep = Preprocessing(*(torch.tensor(data[name], device=device) for name in ("mean", "std")), 0, data["mirror"])
    known = len(loaded.model.classifier.weight)
    if classifier == "nme":
        if loaded.exemplars is None:
            raise UsageError(f"--classifier nme: {file} holds no exemplars; cnn would work")
        means["nme"] = class_means(loaded.model, loaded.exemplars, known, prep, size)
    found, change = [], as_digit if target.config.dataset == "digits" else None
    for start in range(0, len(images), size):
        with usage_errors("IMAGE"):
            batch = read_images(images[start : start + size], data["image_size"], change)
        found.append(scores(loaded.model, batch.to(device), means, prep, size)[classifier])
    names = [data["class_names"][class_id] for class_id in target.order[:known]]
    return names, torch.cat(found).softmax(1) if classifier == "cnn" else torch.cat(found)


@command("main.py predict")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser("main.py predict", description="Name what is on images.", allow_abbrev=False)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder, whose last finished phase is taken, or a phase_<i>.pt")
    add("images", type=Path, nargs="+", metavar="IMAGE", help="an image file of any size")
    add("--classifier", choices=SCORES, help="network output or nearest mean of exemplars (that of the baseline)")
    add("--top", type=int, default=5, metavar="K", help="the K best classes of each image (%(default)s)")
    add("--json", action="store_true", help="a line of JSON for each image, instead of a table")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... or auto: a GPU where there is one (%(default)s)")
    options = parser.parse_args(arguments)
    check_setting("top", options.top)
    device = pick_device(options.device, None)
    prepare(device, deterministic=False)
    target = own_target(options.run, options)
    classifier = options.classifier or target.headline
    names, found = predictions(target, options.images, classifier, device)
    best, rows = found.topk(min(options.top, len(names)), dim=1), [["file", "class", SCORES[classifier]]]
    for path, labels, values in zip(options.images, best.indices.tolist(), best.values.tolist(), strict=True):
        ranked = [{"class": names[k], "score": round(value, 6)} for k, value in zip(labels, values, strict=True)]
        if options.json:
            print(json.dumps({"file": str(path), "predictions": ranked}))
        rows += [[printable(str(path)), printable(one["class"]), f"{one['score']:.4f}"] for one in ranked]
    if not options.json:
        print(render_table(rows, left=2))
        print(f"\nphase {max(target.files)}, {len(names)} classes; {CLASSIFIERS[classifier]}")
