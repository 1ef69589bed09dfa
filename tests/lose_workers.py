"""Loses processes that decode images, for tests/data/test_input.py; in a process of its own, which dies with them:

python tests/lose_workers.py DATA OUT       prints what becomes of each case
"""

import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time

import pytest
import torch
from image_folders import TINY, preprocessing, read, training_images

from mnemonics.__main__ import main
from mnemonics.data.batches import LabelledImages, StreamedBatches
from mnemonics.data.files import Decoder
from mnemonics.engine.errors import UsageError


def in_training(patch, root, out):
    """Of the real command, as the system ends a process when memory is short: the worker that gets the second image of
    a class dies in the first epoch."""
    decode = Decoder.image

    def image(self, row):
        in_file = row < len(self.images.names)
        if in_file and self.images.names[row].endswith(b"/1.png") and multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(self, row)

    patch.setattr(Decoder, "image", image)
    print("status", main([*TINY, "--data_dir", root, "--out", out, "--num_workers", "2"]), flush=True)


def handing_over(patch, root, out):
    """A worker is about to die when the main process asks it for the memory of a batch that is ready."""
    patch.setattr(multiprocessing.connection, "deliver_challenge", lambda connection, key: connection.close())
    training_images(root, 16, 2).loaded()


def while_busy(patch, root, out):
    """The main process is, with something else, and learns of it when it needs the next epoch."""
    data = read(root, 16, 2)
    batches = StreamedBatches(LabelledImages(data.train_images, data.train_class_ids), preprocessing(root))
    list(batches.epoch([2], torch.Generator().manual_seed(0)))
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.2)
    list(batches.epoch([2], torch.Generator().manual_seed(1)))


def at_start(patch, root, out):
    def refuse(self):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    patch.setattr(multiprocessing.context.ForkProcess, "start", refuse)
    patch.setattr(multiprocessing.context.Process, "start", refuse)
    training_images(root, 16, 2).loaded()


if __name__ == "__main__":
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2  # seconds; PyTorch waits longer for workers to end
    for case in (in_training, handing_over, while_busy, at_start):
        with pytest.MonkeyPatch.context() as patch:
            try:
                case(patch, *sys.argv[1:])
            except UsageError as error:
                print(case.__name__, error, flush=True)
    os._exit(0)  # what else PyTorch and the threads of its queues say as they go is not the matter here
