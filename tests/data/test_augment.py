"""The batched augmentation against torchvision's transforms, image by image on the same draws."""

import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from mnemonics.data.augment import CropAndMirror, denormalise, normalise

MEAN, STD = torch.tensor([0.5071, 0.4866, 0.4409]), torch.tensor([0.2009, 0.1984, 0.2023])
PIXELS = CropAndMirror(4, True)


def random_images(n, size=32, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def by_torchvision(image, top, left, mirrored, padding):
    """One image the usual way: PIL, pad, crop, flip, ToTensor, Normalize."""
    pil = TF.pad(Image.fromarray(image.permute(1, 2, 0).numpy()), padding)
    pil = TF.crop(pil, int(top), int(left), image.shape[1], image.shape[2])
    pil = TF.hflip(pil) if mirrored else pil
    return TF.normalize(TF.to_tensor(pil), MEAN.tolist(), STD.tolist())


def test_crop_mirror_normalise_equal_torchvision():
    images = random_images(64)
    crops = PIXELS.draw(64, torch.Generator().manual_seed(1))
    ours = normalise(PIXELS.apply(images, *crops), MEAN, STD)
    theirs = torch.stack([by_torchvision(i, *c, 4) for i, *c in zip(images, *crops, strict=True)])
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_draws_cover_every_offset_and_half_of_the_mirrorings():
    crops = PIXELS.draw(5000, torch.Generator().manual_seed(0))
    assert crops.top.unique().tolist() == crops.left.unique().tolist() == list(range(9))
    assert 0.45 < crops.mirrored.float().mean() < 0.55
    assert not CropAndMirror(4, False).draw(5000, torch.Generator().manual_seed(0)).mirrored.any()


def test_border_of_normalised_images_can_be_black():
    images, crops = random_images(8), PIXELS.draw(8, torch.Generator().manual_seed(2))
    first_cut = normalise(PIXELS.apply(images, *crops), MEAN, STD)
    first_normalised = CropAndMirror(4, True, -MEAN / STD).apply(normalise(images, MEAN, STD), *crops)
    assert torch.allclose(first_cut, first_normalised, atol=1e-6)


def test_gradient_of_the_crop_goes_back_to_the_pixels_it_showed():
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    augment = CropAndMirror(2, True)
    crops = augment.draw(2, torch.Generator().manual_seed(3))
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, *crops), images)


def test_denormalise_inverts_normalise_for_every_pixel_value():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(denormalise(normalise(images, MEAN, STD), MEAN, STD), images)


@pytest.mark.parametrize(("pixel", "expected"), [(99.4, 99), (99.6, 100), (-20.0, 0), (300.0, 255)])
def test_denormalise_rounds_to_nearest_and_clamps(pixel, expected):
    """Truncation would darken images, a missing clamp would wrap around."""
    x = ((torch.full((1, 3, 1, 1), pixel) / 255) - MEAN[:, None, None]) / STD[:, None, None]
    assert denormalise(x, MEAN, STD).flatten().tolist() == [expected] * 3
