"""What a checkpoint must hold to be read: others end in a line, not in a traceback."""

import pytest
import torch
from reports import tiny_run

from mnemonics.engine import files as checkpoint
from mnemonics.engine.errors import UsageError
from mnemonics.experiment.stored import read_state

CPU = torch.device("cpu")
WRONG = {  # part of a checkpoint -> contents that no run writes
    "settings": [
        *({"baseline": "mine"}, {"exemplars": "mine"}, {"dataset": None}, {"nb_cl_fg": "2"}, {"nb_cl": [1]}),
        *({"image_size": "x"}, {"max_images_per_class": "x"}, {"base_lr": "0.1"}, {"network": "nope"}),
    ],
    "data": [
        *({"class_names": list(range(10))}, {"class_names": []}, {"train_images": None}, {"train_images": ["x"]}),
        *({"mean": ["x"]}, {"image_size": "x"}, {"image_size": -1}, {"fingerprint": 0}),
    ],
    "exemplars": [
        *({"labels": torch.tensor([99])}, {"labels": torch.tensor([-1])}, {"labels": torch.zeros(2)}),
        *({"labels": torch.zeros(2, 2, dtype=torch.int64)}, {"images": torch.zeros(1, 3, 4, 4, 1)}, {"images": "x"}),
    ],
}


@pytest.mark.parametrize(("part", "content"), [(part, content) for part in WRONG for content in WRONG[part]])
def test_a_content_that_no_run_writes(part, content, tmp_path):
    state = read_state(tiny_run("herding") / "phase_0.pt", CPU)
    state[part] |= content
    checkpoint.save(tmp_path / "phase_0.pt", state)
    with pytest.raises(UsageError, match="not a checkpoint of this program, or a damaged one"):
        read_state(tmp_path / "phase_0.pt", CPU)


@pytest.mark.parametrize(("name", "value"), [("phase", "x"), ("data", "x"), ("data", {}), ("class_order", [0, 2])])
def test_other_parts(name, value, tmp_path):
    state = read_state(tiny_run("herding") / "phase_0.pt", CPU)
    checkpoint.save(tmp_path / "phase_0.pt", state | {name: value})
    with pytest.raises(UsageError, match="not a checkpoint of this program, or a damaged one"):
        read_state(tmp_path / "phase_0.pt", CPU)
