"""Data sets whose classes have very different numbers of images."""

import pytest
from image_folders import pictures

from mnemonics.algorithm import run
from mnemonics.experiment.state import parse_args

COUNTS = {"a": 30, "b": 3, "c": 1, "d": 20}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("long_tailed")
    for number, (name, count) in enumerate(COUNTS.items()):
        pictures(root, [name], count, seed=number)
    return root


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ("--baseline lucir --nb_protos 20", (1, 20)),
        ("--baseline bic --total_memory 30", (1, 13)),
        ("--baseline joint", (1, 20)),
    ],
)
def test_each_class_keeps_what_it_has_or_its_quota(images, tmp_path, flags, kept, capsys):
    fixed = "--dataset folder --network resnet8 --nb_phases 1 --epochs 1 --num_workers 0 --device cpu --no_adjust"
    flags = [*fixed.split(), *flags.split(), "--exemplars", "herding", "--data_dir", str(images)]
    results, _ = run(parse_args([*flags, "--out", str(tmp_path / "run")]))
    least, most = kept
    assert results["phases"][-1]["exemplars_per_class"] == {"min": least, "max": most}
    assert ("have fewer than" in capsys.readouterr().out) is ("joint" not in flags)
