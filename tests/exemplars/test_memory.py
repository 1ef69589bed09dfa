"""The exemplar memory, its budget and the batches drawn from it."""

import pytest
import torch

from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.batches import LabelledImages, Preprocessing, ResidentBatches, balanced_batches
from mnemonics.data.image_source import rank_within_class
from mnemonics.exemplars.memory import ExemplarMemory, class_quota

CPU = torch.device("cpu")


def labelled(labels, size=4):
    """Images whose first pixel is their position, so that they can be told apart."""
    images = torch.zeros(len(labels), 3, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels), dtype=torch.uint8)
    return LabelledImages(images, torch.tensor(labels))


def test_extend_and_shrink_keep_the_first_of_each_class():
    memory = ExemplarMemory.empty(4, CPU).extended(labelled([0, 0, 0, 1, 1, 1]))
    memory = memory.shrunk_to(2).extended(labelled([2, 2]))
    assert memory.data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert memory.data.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4, 0, 1]
    assert torch.equal(memory.training.labels, memory.data.labels)


def test_held_out_exemplars_are_apart_and_count():
    memory = ExemplarMemory.empty(4, CPU).extended(labelled([0, 0, 1, 1]), held_out=True)
    memory = memory.extended(labelled([0, 0, 0, 1, 1, 1])).shrunk_to(2, held_out=1)
    assert memory.training.labels.tolist() == [0, 0, 1, 1]
    assert memory.training.images[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert memory.calibration.images[:, 0, 0, 0].tolist() == [0, 2]
    assert (len(memory), memory.bytes) == (6, 6 * 3 * 4 * 4)
    changed = memory.with_images(memory.training.images + 100)
    assert changed.training.images[:, 0, 0, 0].tolist() == [100, 101, 103, 104]
    assert torch.equal(changed.calibration.images, memory.calibration.images)


def test_bytes_are_those_of_real_images():
    memory = ExemplarMemory.empty(32, CPU).extended(labelled([0] * 20, 32))
    assert memory.bytes == 20 * 3 * 32 * 32


def test_memory_refuses_floats_and_classes_it_has():
    memory = ExemplarMemory.empty(4, CPU).extended(labelled([0, 1]))
    with pytest.raises(ValueError, match="already holds"):
        memory.extended(labelled([1]))
    with pytest.raises(ValueError, match="uint8"):
        memory.extended(LabelledImages(torch.zeros(1, 3, 4, 4), torch.tensor([2])))
    with pytest.raises(ValueError, match="uint8"):
        memory.with_images(torch.zeros(2, 3, 4, 4))


def test_quota_per_class_and_in_total():
    per_class = ExperimentConfig(nb_protos=20)
    assert [class_quota(per_class, [500] * seen) for seen in (50, 100)] == [20, 20]
    total = ExperimentConfig(total_memory=2000)
    assert [class_quota(total, [500] * seen) for seen in (50, 60, 100)] == [40, 33, 20]


def test_small_classes_leave_their_share_to_the_others():
    counts = [40, 3, 1, 25]
    quota = class_quota(ExperimentConfig(total_memory=40), counts)
    assert [min(quota, count) for count in counts] == [18, 3, 1, 18]
    assert class_quota(ExperimentConfig(total_memory=90), counts) == 40  # all images of all classes


def test_rank_within_class():
    assert rank_within_class(torch.tensor([5, 1, 5, 5, 1])).tolist() == [0, 0, 1, 2, 1]


def test_the_draws_of_an_epoch_pass_over_everything_once():
    prep = Preprocessing(torch.zeros(3), torch.ones(3), 2, True)
    data = LabelledImages(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.arange(10))
    draws = list(ResidentBatches(data, prep).epoch([4, 4, 2], torch.Generator().manual_seed(0)))
    assert [[len(draw) for draw in batch] for batch in draws] == [[4] * 4, [4] * 4, [2] * 4]
    order, top, left, mirrored = (torch.cat(draw).tolist() for draw in zip(*draws, strict=True))
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    assert all(0 <= corner <= 4 for corner in top + left)
    assert {True, False} == set(mirrored)


def test_balanced_batches_are_balanced_and_use_every_image_equally():
    labels = torch.arange(7).repeat_interleave(20)
    batches = list(balanced_batches(labels, 32, 35, torch.Generator().manual_seed(0)))
    assert all(len(batch) == 32 for batch in batches)
    for batch in batches:
        counts = torch.bincount(labels[batch], minlength=7)
        assert counts.max() - counts.min() <= 2
    uses = torch.bincount(torch.cat(batches), minlength=140)  # 35 * 32 = 8 * 140
    assert uses.tolist() == [8] * 140


def test_balanced_batches_of_a_small_set_are_whole_passes():
    labels = torch.tensor([0, 0, 1, 1])
    for batch in balanced_batches(labels, 128, 3, torch.Generator().manual_seed(0)):
        assert sorted(batch.tolist()) == [0, 1, 2, 3]
