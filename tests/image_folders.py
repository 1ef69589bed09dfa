"""Small folders of image files, and how the tests read them."""

import numpy as np
import torch
from PIL import Image

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import Preprocessing
from mnemonics.data.sources import load_source

TINY = (
    "--dataset folder --nb_cl_fg 2 --nb_cl 1 --network resnet8 --epochs 1 --max_images_per_class 6 --nb_protos 2 "
    "--mnemonics_val_batch_size 64 --mnemonics_epochs 1 --mnemonics_steps 2 --finetune_epochs 1 --num_workers 0"
).split()


def picture(path, size, seed=0, mode="RGB"):
    """A file with noise of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def pictures(root, classes=("ape", "bee"), train=3, val=2, size=20, seed=0, ending="png"):
    """Classes of square images: root/train/<class>/0.png, 1.png, ... and root/val/<class>/0.png, ..."""
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(classes):
            for i in range(count):
                picture(root / split / name / f"{i}.{ending}", (size, size), 1000 * seed + 10 * number + i)
    return root


def read(root, size=32, workers=0):
    return load_source(ExperimentConfig(dataset="folder", data_dir=str(root), image_size=size, num_workers=workers))


def training_images(root, size=32, workers=0):
    return read(root, size, workers).train_images


def preprocessing(root):
    return Preprocessing.of(read(root), torch.device("cpu"))
