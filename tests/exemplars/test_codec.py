"""Exemplars as coded pages: what is stored, what is seen of it, and what is told where that cannot be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from contexts import context
from image_folders import TINY, pictures, training_images
from PIL import Image

import main
from mnemonics.algorithm import run
from mnemonics.baselines import BASELINES
from mnemonics.config.fields import ExperimentConfig
from mnemonics.data.augment import Crops
from mnemonics.data.batches import LabelledImages, Preprocessing, ResidentBatches
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.exemplars.codec import Codec
from mnemonics.exemplars.memory import ExemplarMemory
from mnemonics.experiment.run_folder import memory_of, refuse_other_settings, stored_memory
from mnemonics.experiment.state import parse_args
from mnemonics.experiment.stored import own_target
from mnemonics.training import recoded

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
FLAGS = (
    "--dataset digits --max_images_per_class 30 --nb_cl_fg 6 --nb_phases 2 --network resnet8 --epochs 1 "
    "--method baseline --device cpu"
).split()


def codec(name, size=16, **budget):
    return Codec.of(ExperimentConfig(exemplar_format=name, **budget), size)


def digits(per_class=75, classes=(3, 5)):
    source = load_source(ExperimentConfig(dataset="digits", max_images_per_class=per_class))
    return LabelledImages(*source.train(classes))


@pytest.mark.parametrize(
    ("name", "least"), [("png", None), ("webp:90", 30), ("jpeg:90", 30), ("avif:80", 35), ("avif:30", 20)]
)
def test_round_trip(name, least):
    data = digits()
    coded = codec(name).coded(data)
    assert [page.count for page in coded.pages] == [64, 11, 64, 11]  # 75 of each class
    assert torch.equal(coded.data.labels, data.labels.sort().values)
    assert torch.equal(coded.data.images, torch.cat([codec(name).decoded(page) for page in coded.pages]))
    error = (coded.data.images.float() - data.images[coded.kept].float()).square().mean((1, 2, 3))
    if least is None:
        assert (error.max(), coded.psnr) == (0, None)
    else:
        assert coded.psnr == pytest.approx(10 * torch.log10(255**2 / error.mean()).item(), abs=0.01)
        assert coded.psnr > least
    assert torch.equal(codec(name).recoded(data)[coded.kept], coded.data.images)
    large = LabelledImages(data.images[:2].repeat_interleave(5, 2).repeat_interleave(5, 3), data.labels[:2])
    assert [page.count for page in codec(name, 80).coded(large).pages] == [1, 1]


def test_real_images_take_half_of_the_bytes_in_a_page(cifar100_mini):
    source = load_source(ExperimentConfig(data_dir=str(cifar100_mini)))
    images, avif = source.train([8])[0], codec("avif:80", 32)
    alone = sum(len(avif.page(image[None]).code) for image in images)
    assert len(avif.page(images).code) < 0.7 * alone
    assert avif.coded(LabelledImages(images, torch.zeros(len(images), dtype=torch.int64))).psnr > 33


@pytest.mark.parametrize("name", ["webp:80", "avif:60"])
def test_bytes_are_filled_and_pages_dropped_whole_and_nothing_is_coded_twice(name, monkeypatch):
    data, limits, by_bytes = digits(), [900, 1400, 2100], codec(name, exemplar_bytes=1)
    coded = by_bytes.coded(data, limits)
    memory = ExemplarMemory.empty(16, CPU, by_bytes).extended(coded.data, pages=coded.pages)
    assert all(len(by_bytes.page(data.images[data.labels == k][:64]).code) > limits[-1] for k in (3, 5))
    monkeypatch.delattr(Codec, "page")
    for limit in limits[::-1]:
        memory = memory.shrunk_to(limit)
        assert 2 * 0.8 * limit < memory.bytes <= 2 * limit
        assert torch.equal(memory.data.images, torch.cat([by_bytes.decoded(page) for page in memory.pages]))
        assert set(memory.data.labels.tolist()) == {3, 5}
        again = memory_of(stored_memory(memory), ExperimentConfig(exemplar_format=name, exemplar_bytes=1))
        assert (again.pages, again.codec) == (memory.pages, memory.codec)
    assert len(by_bytes.coded(data[:0]).data) == 0


def test_images_before_the_first_that_fits_are_left_out():
    data = digits(4, (3,))
    data.images[:2] = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)  # noise takes 800 bytes an image
    coded = codec("png", exemplar_bytes=1).coded(data, [400])
    assert coded.kept.tolist() == [2, 3]
    assert torch.equal(coded.data.images, data.images[2:])


def test_some_new_images_are_shown_recoded():
    data = LabelledImages(torch.zeros(300, 3, 2, 2, dtype=torch.uint8), torch.arange(300))
    prep, recoded = Preprocessing(torch.zeros(3), torch.ones(3), 0, False), torch.full((200, 3, 2, 2), 255).byte()
    plain, mixed = ResidentBatches(data, prep), ResidentBatches(data, prep, recoded, 0.25)
    (first, *_), (drawn, *crops) = (next(b.epoch([300], torch.Generator().manual_seed(0))) for b in (plain, mixed))
    images, labels = mixed.network_input(drawn, *Crops(*crops))
    assert torch.equal(labels, first)
    share = images.mean((1, 2, 3))[labels < 200].mean()
    assert 0.15 < share < 0.35
    assert images[labels >= 200].max() == 0


def test_where_there_are_no_exemplars_nothing_is_recoded():
    phase, lucir = context(None, ExperimentConfig(exemplar_format="jpeg:1", recode=1.0), phase=1), BASELINES["lucir"]
    data = digits(3, (3, 5))
    new = LabelledImages(data.images, torch.full_like(data.labels, phase.phase.first))
    with_old = new.followed_by(LabelledImages(data.images[:1], torch.tensor([0])))
    assert recoded(phase, lucir(phase.config), new) is None
    assert torch.equal(recoded(phase, lucir(phase.config), with_old), codec("jpeg:1").recoded(new))


def results_of(folder, *flags):
    run(parse_args([*FLAGS, "--out", str(folder), *map(str, flags)]))
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "flags",
    ["avif:60 --total_bytes 9000 --exemplars random", "webp:90 --exemplar_bytes 4000 --baseline bic",
     "jpeg:50 --exemplar_bytes 1500 --exemplars mnemonics --mnemonics_epochs 1 --mnemonics_steps 1",
     "png --total_memory 40 --baseline replay"],
)  # fmt: skip
def test_runs_say_the_true_bytes_and_can_be_evaluated(flags, tmp_path):
    results = results_of(tmp_path, "--exemplar_format", *flags.split())
    config, target = results["config"], own_target(tmp_path, None)
    most = config["total_bytes"] or (config["exemplar_bytes"] or 10**9) * 10
    assert (config["recode"], config["scale_distillation"]) == ((0.0, False) if "png" in flags else (1.0, True))
    for i, phase in enumerate(results["phases"]):
        stored = checkpoint.load(tmp_path / f"phase_{i}.pt", CPU)["exemplars"]
        assert phase["exemplar_bytes"] == stored["pages"][:, 0].sum() == len(stored["codes"]) <= most
        assert phase["exemplar_format"] == config["exemplar_format"]
        assert (phase["exemplar_psnr_db"] or 99) > 20
        counts = torch.bincount(stored["labels"])
        assert phase["exemplars_per_class"] == {"min": counts.min(), "max": counts.max()}
        assert ("stored" in phase.get("exemplar_validation_loss", ())) == ("mnemonics" in flags)
        assert torch.equal(target.load(i, target.files[i], CPU).exemplars.labels, stored["labels"])


def test_a_raw_budget_of_bytes_is_one_of_images_which_may_be_adjusted(tmp_path):
    adjusted = "--adjust_always --mnemonics_epochs 1 --mnemonics_steps 1".split()
    phases = results_of(tmp_path, "--total_bytes", 40 * 3 * 16 * 16 + 700, *adjusted)["phases"]
    assert [phase["exemplars_per_class"]["max"] for phase in phases] == [6, 5, 4]


MISTAKES = {
    "avif:0": ["--exemplar_format avif:0", "1 to 100"],
    "webp:101": ["webp:101"],
    "jpeg": ["--exemplar_format jpeg:", "jpeg:Q"],
    "gif:50": ["gif:50"],
    "png --exemplar_bytes 90": ["--exemplar_bytes 90", "class '", "as png"],
    "raw --total_bytes 7679": ["--total_bytes 7679", "class '", "--exemplar_format avif:80"],
    "avif:50 --baseline bic --exemplar_bytes 900": ["a tenth", "bic", "class '", "a lower quality"],
    "avif:50 --baseline joint --exemplar_bytes 10": ["--exemplar_bytes 10", "class '"],
    "avif:50 --exemplar_bytes 9 --total_bytes 9": ["--exemplar_bytes 9, --total_bytes 9", "one of them"],
    "avif:50 --adjust_always": ["--exemplar_format avif:50", "--adjust_always"],
    "raw --recode 0.5": ["--recode 0.5", "raw"],
    "png --recode 1.5": ["--recode 1.5", "at most 1"],
    "lacking:50": ["--exemplar_format avif:50", "Pillow", "png"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_line(mistake, tmp_path, told, monkeypatch):
    if "lacking" in mistake:
        monkeypatch.delitem(Image.SAVE, "AVIF", Image.init())
    flags = mistake.replace("lacking", "avif").split()
    error = told(main.main, *FLAGS, "--out", tmp_path / "run", "--exemplar_format", *flags)
    assert all(word in error for word in MISTAKES[mistake]), error


def test_a_damaged_page_and_an_image_too_large_are_told_in_a_line(tmp_path, told, monkeypatch):
    folder, flags = tmp_path / "run", ("--exemplar_format", "webp:80", "--exemplar_bytes", 400)
    results_of(folder, *flags)
    for change, words in (("codes", "cannot be decoded"), ("pages", "has another length")):
        state = checkpoint.load(folder / "checkpoint.pt", CPU)
        state["exemplars"][change][..., 1:] = 77
        damaged = shutil.copytree(folder, tmp_path / change)
        checkpoint.save(damaged / "checkpoint.pt", state)
        assert f"a page of exemplars {words}" in told(main.main, *FLAGS, *flags, "--out", damaged)
        assert {path.name for path in damaged.iterdir()} == {path.name for path in folder.iterdir()}
    monkeypatch.setattr("mnemonics.experiment.state.check_budget", lambda *_: "")  # it looks at first images only
    small = (*flags[:2], "--exemplar_bytes", 60, "--out", tmp_path / "none")
    assert "less than one image of class '" in told(main.main, *FLAGS, *small, after_words=True)


def test_large_images_are_decoded_and_recoded_where_they_are_used(tmp_path, monkeypatch):
    files = training_images(pictures(tmp_path, "abcd", 5, 1, size=80), 80)
    labels, jpeg = torch.arange(4).repeat_interleave(5), codec("jpeg:40", 80, total_bytes=1, num_workers=2)
    data, decoded = LabelledImages(files, labels), []
    coded = jpeg.coded(data, [4000, 9000])
    monkeypatch.setattr(
        Codec, "decoded", lambda self, page, real=Codec.decoded: decoded.append(page) or real(self, page)
    )
    memory = ExemplarMemory.empty(80, CPU, jpeg).extended(coded.data, pages=coded.pages)
    smaller, mixed = memory.shrunk_to(4000), data[labels == 3].followed_by(memory.training[memory.data.labels < 3])
    recoded = jpeg.recoded(data[labels == 3])
    again = memory_of(stored_memory(smaller), ExperimentConfig(exemplar_format="jpeg:40", total_bytes=1, num_workers=0))
    assert not decoded  # so far
    assert 0 < len(smaller.data) < len(memory.data) < len(data)
    assert len(smaller.data.images.stored) == len(smaller.data)  # what was dropped is not kept
    for images, pages in ((memory.data.images, memory.pages), (again.data.images, smaller.pages)):
        assert torch.equal(images.loaded(), torch.cat([jpeg.decoded(page) for page in pages]))
    old = (memory.data.labels < 3).nonzero().flatten()
    assert torch.equal(mixed.loaded().images, torch.cat([files[15:].loaded(), memory.data.images[old].loaded()]))
    alone = [jpeg.decoded(jpeg.page(image[None])) for image in files[15:].loaded()]
    assert torch.equal(recoded.loaded(), torch.cat(alone))
    assert torch.equal(mixed.images.followed_by(recoded).loaded()[-5:], torch.cat(alone))


def test_a_run_with_large_coded_exemplars(tmp_path):
    """Optimised, trained and tuned on: from the pages alone."""
    where, root = TINY.index("--nb_protos"), pictures(tmp_path / "data", "abcd", 4, 1, size=80)
    budget = "--exemplar_format jpeg:30 --total_bytes 20000 --exemplars mnemonics --nb_cl 2".split()
    command = [*TINY[:where], *TINY[where + 2 :], *budget, "--image_size", "80", "--data_dir", str(root)]
    results, _ = run(parse_args([*command, "--out", str(tmp_path / "run")]))
    last, target = results["phases"][1], own_target(tmp_path / "run", None)
    memory = target.load(1, target.files[1], CPU).memory
    assert 0 < last["exemplar_bytes"] == memory.bytes <= 20000
    assert last["exemplars_per_class"]["max"] == torch.bincount(memory.data.labels).max()
    assert last["train_images"]["old"] > 0


def test_runs_from_before_there_were_formats_are_the_same_as_raw_ones():
    config = parse_args(["--last_batch", "keep"])
    new = vars(config).keys() & {"exemplar_format", "exemplar_bytes", "total_bytes", "last_batch"}
    old = {name: value for name, value in vars(config).items() if name not in new}
    refuse_other_settings(Path("run"), old, config)
