"""scikit-learn's handwritten digits, which need no files."""

import numpy as np
import torch
from PIL import Image, ImageOps

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.image_source import ImageSource

SPLIT_SEED = 0
MEAN, STD = 0.3054, 0.3760  # of all pixels of the training split


def load_digits(config: ExperimentConfig) -> ImageSource:
    """1,797 digits: 8x8 pixels shown at 16x16, a fixed stratified 80/20 split."""
    # imported here because scikit-learn takes a second that other data sets need not wait for
    from sklearn.datasets import load_digits as read_digits
    from sklearn.model_selection import train_test_split

    values, class_ids = read_digits(return_X_y=True)  # float64 [1797, 64] with 0..16, int64 [1797]
    pixels = np.rint(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)  # exact: 255 / 16 has few binary digits
    images = torch.from_numpy(pixels.repeat(2, axis=2).repeat(2, axis=3).repeat(3, axis=1))  # [1797, 3, 16, 16]
    ids = torch.from_numpy(class_ids.astype(np.int64))
    splits = train_test_split(np.arange(len(ids)), test_size=0.2, random_state=SPLIT_SEED, stratify=class_ids)
    train, test = (torch.from_numpy(np.sort(indices)) for indices in splits)  # sorted: order as in the data set
    mirror = False  # a mirrored 3 is no 3
    about = "digits", tuple("0123456789"), (MEAN,) * 3, (STD,) * 3, 2, mirror, ()
    return ImageSource(*about, images[train], ids[train], images[test], ids[test])


def as_digit(image: Image.Image) -> Image.Image:
    """An image of any size as one of the data set: its centre, grey, 8x8 pixels shown at 16x16."""
    grey = ImageOps.fit(image.convert("L"), (8, 8), Image.Resampling.BOX)
    return grey.resize((16, 16), Image.Resampling.NEAREST).convert("RGB")
