"""TensorBoard's event files. By tensorboardX's writer, without the thread that its SummaryWriter puts before it: there,
a full disk would end the thread, and the run would wait for it for ever."""

import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import image, scalar

from mnemonics.engine.files import naming


class Events:
    """Curves and pictures in files whose names start with `path`. An OSError names it."""

    def __init__(self, path: Path):
        self.path, self.writer = path, EventsWriter(str(path))

    def scalar(self, name: str, value: float, step: int) -> None:
        self.write(scalar(name, value), step)

    def image(self, name: str, picture: Path, step: int) -> None:
        with Image.open(picture) as opened:
            self.write(image(name, np.asarray(opened.convert("RGB")), dataformats="HWC"), step)

    def write(self, summary: Summary, step: int) -> None:
        with naming(self.path):
            self.writer.write_event(Event(summary=summary, step=step, wall_time=time.time()))
            self.writer.flush()

    def close(self) -> None:
        with naming(self.path):
            self.writer.close()
