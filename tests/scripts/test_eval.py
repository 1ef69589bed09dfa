"""Evaluating stored networks, and getting the authors' ones."""

import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import gdown
import numpy as np
import pytest
import torch
from PIL import Image
from test_legacy import authors_modules, make, save, stand_ins

from eval import convert_legacy, download_checkpoints, evaluate
from mnemonics import algorithm as experiment
from mnemonics.config.fields import ExperimentConfig, parse_args
from mnemonics.data.sources import load_source
from mnemonics.engine import files as checkpoint
from mnemonics.evaluation import confusion_matrix
from mnemonics.legacy import fetch
from mnemonics.legacy.authors import settings_in_name
from mnemonics.protocol import class_order

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--dataset digits --max_images_per_class 30 --nb_cl_fg 6 --nb_cl 2 --network resnet8 --epochs 1 --nb_protos 10 "
        "--mnemonics_val_batch_size 64 "
        "--mnemonics_epochs 1 --mnemonics_steps 1 --finetune_epochs 1").split()  # fmt: skip
NAME = "cifar100_nfg80_ncls10_nproto20_mtl_exp01"


def run_eval(*arguments, status=0, capsys=None):
    """Run evaluate.py in this process. Returns what it printed to standard error."""
    assert evaluate.main([str(a) for a in arguments]) == status
    return capsys.readouterr().err if capsys else None


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


def measured(phase):
    """The numbers of a phase of results.json or evaluation.json that are about the stored network."""
    keys = ("accuracy", "phase0_accuracy", "accuracy_by_phase_of_origin")
    return {k: {n: v for n, v in phase[k].items() if not n.endswith("_before_finetune")} for k in keys}


# our runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two run folders: LUCIR with mnemonics and weight transfer, NCM too; BiC, which holds exemplars out."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in (("lucir", ["--ncm"]), ("bic", ["--baseline", "bic"])):
        experiment.run(parse_args([*TINY, *more, "--out", str(folder / name)]))
    return folder


def test_the_command_on_a_run_prints_and_writes_its_own_results(runs, tmp_path):
    command = [sys.executable, "eval/evaluate.py", str(runs / "lucir"), "--out", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (0, "")
    equal_results(runs / "lucir", tmp_path)
    results, text = json.loads((runs / "lucir" / "results.json").read_text()), (tmp_path / "evaluation.md").read_text()
    assert text in process.stdout
    for number in (results["summary"]["average_accuracy"]["nme"], results["summary"]["forgetting"]["cnn"]):
        assert f"{number:.2f}" in text
    assert all(f"{name} = " in text for name in ("CNN", "NME", "NCM"))
    with Image.open(tmp_path / "confusion.png") as image:
        assert len(image.convert("L").getcolors()) > 5


def test_a_run_of_another_baseline(runs, tmp_path):
    run_eval(runs / "bic", "--out", tmp_path)
    equal_results(runs / "bic", tmp_path)
    assert set(evaluation(tmp_path)["phases"][0]["accuracy"]) == {"cnn", "nme"}


def equal_results(run, out):
    results, found = json.loads((run / "results.json").read_text()), evaluation(out)
    assert [measured(p) for p in found["phases"]] == [measured(p) for p in results["phases"]]
    for key in ("summary", "headline", "class_order", "class_order_sha256"):
        assert found[key] == results[key]
    for mine, its in zip(found["phases"], results["phases"], strict=True):
        assert mine.items() >= {k: its[k] for k in ("phase", "classes_seen", "exemplars_per_class")}.items()
        assert mine["weight_transfer"] is (mine["phase"] > 0)


def test_one_phase_of_a_run_and_other_flags(runs, tmp_path):
    results = json.loads((runs / "bic" / "results.json").read_text())
    run_eval(runs / "bic" / "phase_1.pt", "--out", tmp_path, "--ncm", "--eval_batch_size", 37, "--device", "cpu")
    found = evaluation(tmp_path)
    (phase,) = found["phases"]
    assert phase["phase"] == 1
    assert phase["accuracy"].pop("ncm") > 0
    assert phase["accuracy"] == measured(results["phases"][1])["accuracy"]
    assert found["summary"]["forgetting"] == {"cnn": None, "nme": None, "ncm": None}
    assert found["missing_phases"] == []


def test_checkpoint_pt_is_the_last_phase(runs, tmp_path):
    results = json.loads((runs / "lucir" / "results.json").read_text())
    run_eval(runs / "lucir" / "checkpoint.pt", "--out", tmp_path)
    assert [measured(p) for p in evaluation(tmp_path)["phases"]] == [measured(results["phases"][2])]


def test_missing_phases_are_named_and_the_others_evaluated(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "bic", tmp_path / "part")
    (folder / "phase_1.pt").unlink()
    error = run_eval(folder, "--out", tmp_path / "out", status=2, capsys=capsys)
    assert "no checkpoint of phase 1;" in error
    assert error.count("\n") == 1
    results, found = json.loads((folder / "results.json").read_text()), evaluation(tmp_path / "out")
    assert [measured(p) for p in found["phases"]] == [measured(results["phases"][i]) for i in (0, 2)]
    assert found["missing_phases"] == [1]
    assert found["summary"]["forgetting"] == results["summary"]["forgetting"]
    assert "mean over 2 of all 3 phases" in (tmp_path / "out" / "evaluation.md").read_text()
    (folder / "phase_0.pt").unlink()
    assert "phase 0, 1;" in run_eval(folder, "--out", tmp_path / "out", status=2, capsys=capsys)
    assert evaluation(tmp_path / "out")["summary"]["forgetting"] == {"cnn": None, "nme": None}


def test_several_targets(runs, tmp_path, capsys):
    other = shutil.copytree(runs / "bic", tmp_path / "other" / "bic")
    targets = (runs / "bic" / "phase_0.pt", tmp_path / "nothing", runs / "lucir" / "phase_0.pt", other / "phase_0.pt")
    error = run_eval(*targets, "--out", tmp_path / "out", status=2, capsys=capsys)
    assert error.count("\n") == 2
    assert "nothing: no such file or folder" in error
    assert "another one of this name" in error
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bic_phase_0", "lucir_phase_0"]


FILES = {
    "empty": (b"", "the file is empty"),
    "html": (b"<html><title>Quota exceeded</title></html>", "HTML page ('Quota exceeded')"),
    "text": (b"hello\n", "not a checkpoint of this program"),
    "truncated": (None, "not a checkpoint of this program, or a damaged one"),
}


@pytest.mark.parametrize("kind", FILES)
def test_unusable_files_are_refused(kind, runs, tmp_path, capsys):
    data, message = FILES[kind]
    path = tmp_path / "phase_0.pt"
    path.write_bytes((runs / "bic" / "phase_0.pt").read_bytes()[:-1000] if data is None else data)
    for target in (path, tmp_path):
        error = run_eval(target, "--out", tmp_path / "out", status=2, capsys=capsys)
        assert message in error
        assert str(path) in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def changed(path, **values):
    state = checkpoint.load(path, torch.device("cpu"))
    path.unlink()
    checkpoint.save(path, state | values)


def test_checkpoints_that_do_not_fit_are_refused(runs, tmp_path, capsys):
    folder = shutil.copytree(runs / "bic", tmp_path / "run")
    first, second = folder / "phase_0.pt", folder / "phase_1.pt"
    refused = functools.partial(run_eval, "--out", tmp_path / "out", status=2, capsys=capsys)
    shutil.copy(first, second)
    assert "phase_1.pt: of another run or phase" in refused(folder)
    changed(second, phase=1)
    assert "a network for 6 classes, after phase 1 there are 8" in refused(folder)
    settings = dataclasses.asdict(ExperimentConfig(dataset="digits", nb_cl_fg=6, nb_cl=2))
    changed(first, settings=settings | {"network": "resnet20"})
    assert "its weights do not fit the network resnet20" in refused(first)
    changed(first, settings=settings | {"network": "resnet8"}, class_order=list(range(20)))
    assert "its class order has 20 classes, digits has 10" in refused(first)
    changed(first, class_order=[0, 0, 1])
    assert "not a checkpoint of this program" in refused(first)
    changed(first, format=1)
    assert "checkpoint format 1, this version reads format 3" in refused(first)


MISTAKES = {
    "contradiction": (["--dataset", "cifar100"], "--dataset cifar100: {run} was made with digits; leave it out"),
    "order": (["--order_seed", "7"], "--order_seed 7: {run} was made with 1993"),
    "number": (["--eval_batch_size", "0"], "--eval_batch_size 0: must be greater than 0"),
    "device": (["--device", "cuda:63"], "--device cuda:63"),
    "out": (["--out", "/dev/null/x"], "--out /dev/null/x: cannot be written"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_flags(mistake, runs, tmp_path, capsys, monkeypatch):
    flags, message = MISTAKES[mistake]
    monkeypatch.chdir(tmp_path)
    run = runs / "bic" / "phase_0.pt"
    error = run_eval(run, *flags, status=2, capsys=capsys)
    assert message.format(run=run) in error
    assert error.count("\n") == 1


def test_a_folder_without_checkpoints_is_refused(tmp_path, capsys):
    assert "holds neither phase_<i>.pt nor run_<r>" in run_eval(tmp_path, status=2, capsys=capsys)


def test_confusion_matrix_by_hand():
    counts = confusion_matrix(torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 2, 1]), 4)
    assert counts.tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


# checkpoints of the authors' code


def test_folder_names():
    settings = {"dataset": "cifar100", "nb_cl_fg": 50, "nb_cl": 2, "nb_protos": 20, "weight_transfer": True}
    assert settings_in_name("cifar100_nfg50_ncls2_nproto20_mtl_exp01") == settings
    assert settings_in_name("cifar100_nfg50_ncls2_nproto20_mnemonics") == settings | {"weight_transfer": False}
    assert settings_in_name("imagenet_sub_nfg50_ncls2_nproto20_mtl_exp01") == settings | {"dataset": "imagenet_sub"}
    large = {"dataset": "imagenet", "nb_cl_fg": 500, "nb_cl": 20}
    assert settings_in_name("imagenet_nfg500_ncls20_nproto20_mtl_exp01") == settings | large
    assert settings_in_name("my_models") == {}


@pytest.fixture(scope="module")
def theirs(cifar100_mini, tmp_path_factory):
    """A folder as the authors' code leaves it, phases of 80 + 2 x 10 classes, and the accuracies of its networks on the
    test images, computed from the original modules: {phase: (all classes, phase-0 classes)}."""
    folder, order = tmp_path_factory.mktemp("logs") / NAME, class_order(100, 1993)
    folder.mkdir()
    source, expected = load_source(ExperimentConfig(data_dir=str(cifar100_mini))), {}
    mean, std = (torch.tensor(values)[:, None, None] for values in (source.mean, source.std))
    with stand_ins(tmp_path_factory.mktemp("stand_ins")), torch.no_grad():
        torch.manual_seed(0)
        for phase, arguments in enumerate((("resnet_cifar", 3, 80), ("resnetmtl_cifar", 3, 80, 10),
                                           ("resnetmtl_cifar", 3, 90, 10))):  # fmt: skip
            network, seen = make(*arguments), sum(arguments[2:])
            images, ids = source.test(order[:seen])
            images, labels = (images / 255 - mean) / std, torch.tensor([order.index(i) for i in ids])
            learn_by_heart(network, images, labels)
            save(network, folder / f"run_0_iteration_{phase + 7}_model.pth", old_format=phase < 2)
            save(network, folder / f"run_0_iteration_{phase + 7}_free_model.pth", True)  # what else lies there
            right = (network(images).argmax(1) == labels).double()
            shares = right.mean().item(), right[labels < 80].mean().item()
            expected[phase] = tuple(round(100 * share, 2) for share in shares)
    assert all(percent > 10 for percents in expected.values() for percent in percents)
    return folder, expected


def learn_by_heart(network, images, labels):
    """Set the class weights to the mean features of these very images, so that accuracies are far from chance."""
    features = torch.nn.Sequential(*list(network.children())[:-1])(images).flatten(1)
    features = torch.nn.functional.normalize(features)
    means = torch.stack([features[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    halves = [network.fc.fc1, network.fc.fc2] if hasattr(network.fc, "fc1") else [network.fc]
    for half, weight in zip(halves, means.split([len(half.weight) for half in halves]), strict=True):
        half.weight.copy_(weight)


def cnn(found):
    return {p["phase"]: (p["accuracy"]["cnn"], p["phase0_accuracy"]["cnn"]) for p in found["phases"]}


def test_an_authors_folder_by_its_name(theirs, cifar100_mini, tmp_path, capsys):
    folder, expected = theirs
    run_eval(folder, "--data_dir", cifar100_mini, "--out", tmp_path)
    found = evaluation(tmp_path)
    assert cnn(found) == expected
    assert authors_modules() == []
    assert found["class_order"] == list(class_order(100, 1993))
    assert [set(p["accuracy"]) for p in found["phases"]] == [{"cnn"}] * 3
    assert [p["weight_transfer"] for p in found["phases"]] == [False, True, True]
    assert found["network"] == "resnet20"
    text = (tmp_path / "evaluation.md").read_text()
    assert "NME: not measured, because the checkpoints hold no exemplars" in text
    assert "class order: made from seed 1993" in text
    assert found["summary"]["forgetting"]["cnn"] == pytest.approx(expected[0][1] - expected[2][1], abs=0.005)


def test_flags_override_the_name_and_a_stored_order_counts(theirs, cifar100_mini, tmp_path, capsys):
    folder = shutil.copytree(theirs[0], tmp_path / "cifar100_nfg50_ncls10_nproto20_exp01")
    model, order = folder / "run_0_iteration_8_model.pth", folder / "seed_1993_cifar100_order_run_0.pkl"
    flags = ("--nb_cl_fg", 80, "--data_dir", cifar100_mini, "--out", tmp_path / "out")
    run_eval(model, *flags)
    found = evaluation(tmp_path / "out")
    assert cnn(found) == {1: theirs[1][1]}
    assert "weight transfer is off by the folder's name, but not in phases 1" in found["notices"]
    order.write_bytes(pickle.dumps(np.array(class_order(100, 7)), 4))
    run_eval(model, *flags)
    found = evaluation(tmp_path / "out")
    assert found["class_order"] == list(class_order(100, 7))
    assert cnn(found) != {1: theirs[1][1]}
    assert "class order: read from seed_1993_cifar100_order_run_0.pkl" in found["notices"]
    run_eval(model, *flags, "--order_seed", 1993)
    assert cnn(evaluation(tmp_path / "out")) == {1: theirs[1][1]}
    order.write_bytes(pickle.dumps(np.arange(10), 4))
    assert "class order has 10 classes, cifar100 has 100" in run_eval(model, *flags, status=2, capsys=capsys)
    order.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert "refused: it asks for 'os.system'" in run_eval(model, *flags, status=2, capsys=capsys)
    shutil.copy(order, folder / "seed_7_cifar100_order_run_0.pkl")
    assert "several class orders" in run_eval(model, *flags, status=2, capsys=capsys)


def test_one_file_of_the_authors(theirs, cifar100_mini, tmp_path):
    run_eval(theirs[0] / "run_0_iteration_8_model.pth", "--data_dir", cifar100_mini, "--out", tmp_path, "--ncm")
    found = evaluation(tmp_path)
    assert cnn(found) == {1: theirs[1][1]}
    assert found["phases"][0]["accuracy"]["ncm"] > 0


def test_authors_files_that_are_missing_or_do_not_fit(theirs, cifar100_mini, tmp_path, capsys):
    folder, model = shutil.copytree(theirs[0], tmp_path / NAME), "run_0_iteration_{}_model.pth".format
    refused = functools.partial(
        run_eval, "--data_dir", cifar100_mini, "--out", tmp_path / "out", status=2, capsys=capsys
    )
    assert f"{model(7)}: would be of phase 4, which there is not" in refused(folder, "--nb_cl", 20)
    assert "--nb_cl 3: the authors' code counts in groups that divide the 80" in refused(folder, "--nb_cl", 3)
    shutil.copy(folder / model(7), folder / "run_1_iteration_9_model.pth")
    (folder / model(8)).unlink()
    assert "no checkpoint of phase 1;" in refused(folder)
    assert cnn(evaluation(tmp_path / "out")) == {k: v for k, v in theirs[1].items() if k != 1}
    assert any("run 1 is there too and was left out" in line for line in evaluation(tmp_path / "out")["notices"])
    shutil.copy(folder / model(9), folder / model(7))
    message = "a network for 100 classes, after phase 0 there are 80; phase 0 has --nb_cl_fg 80 classes, phases 1 to 2"
    assert f"{model(7)}: {message}" in refused(folder)
    (folder / model(7)).write_bytes(b"")
    assert f"{model(7)}: the file is empty" in refused(folder)
    (folder / model(7)).write_bytes(b"<!doctype html><title>Google Drive - Quota exceeded</title>")
    assert "an HTML page ('Google Drive - Quota exceeded')" in refused(folder)
    assert "say --dataset --nb_cl_fg --nb_cl" in refused(folder.rename(tmp_path / "models"))


def test_images_of_another_size_are_refused(tmp_path, capsys):
    """The authors' pooling is made for one size; ours would go on and give numbers that theirs cannot give."""
    with stand_ins(tmp_path / "stand_ins"):
        (tmp_path / "theirs").mkdir()
        save(make("resnet_cifar", 3, 8), tmp_path / "theirs" / "run_0_iteration_3_model.pth", True)
    flags = ("--dataset", "digits", "--nb_cl_fg", 8, "--nb_cl", 2, "--out", tmp_path / "out")
    error = run_eval(tmp_path / "theirs", *flags, status=2, capsys=capsys)
    assert "--dataset digits: images of 16x16 pixels, " in error
    assert "needs 32x32" in error


# conversion


def convert(*arguments, status=0):
    assert convert_legacy.main([str(a) for a in arguments]) == status


def test_a_converted_folder_gives_the_same_numbers(theirs, cifar100_mini, tmp_path, capsys):
    convert(theirs[0], tmp_path / "converted")
    assert sorted(p.name for p in (tmp_path / "converted").iterdir()) == [f"phase_{i}.pt" for i in range(3)]
    run_eval(tmp_path / "converted", "--data_dir", cifar100_mini, "--out", tmp_path / "out")
    found = evaluation(tmp_path / "out")
    assert cnn(found) == theirs[1]
    assert "NME: not measured" in found["notices"][-1]
    assert found["summary"]["forgetting"].keys() == {"cnn"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["converted", "out"]  # no scratch folder is left
    convert(theirs[0], tmp_path / "converted", status=2)
    assert "converted: is there already" in capsys.readouterr().err


def test_a_converted_file_of_any_name(theirs, tmp_path, capsys):
    model = shutil.copy(theirs[0] / "run_0_iteration_9_model.pth", tmp_path / "model.bin")
    convert(model, tmp_path / "a.pt", status=2)
    assert "say --dataset --nb_cl_fg --nb_cl" in capsys.readouterr().err
    flags = ("--dataset", "cifar100", "--nb_cl_fg", 80, "--nb_cl", 10, "--order_seed", 7)
    convert(model, tmp_path / "a.pt", *flags)
    state = checkpoint.load(tmp_path / "a.pt", torch.device("cpu"))
    assert (state["phase"], state["class_order"]) == (2, list(class_order(100, 7)))
    shutil.copy(theirs[0] / "run_0_iteration_7_model.pth", model)
    convert(model, tmp_path / "b.pt", "--dataset", "cifar100", "--nb_cl_fg", 50, "--nb_cl", 25, status=2)
    assert "a network for 80 classes; with --nb_cl_fg 50 and --nb_cl 25 no phase" in capsys.readouterr().err
    convert(tmp_path / "none.pth", tmp_path / "b.pt", *flags, status=2)
    convert(tmp_path, tmp_path / "b.pt", *flags, status=2)
    Path(model).write_bytes(b"cos\nsystem\n.")
    convert(model, tmp_path / "b.pt", *flags, status=2)
    errors = capsys.readouterr().err.splitlines()
    assert [error.split(": ", 2)[2] for error in errors] == [
        "cannot be read (No such file or directory)",
        "holds no run_<r>_iteration_<k>_model.pth; give the folder that does",
        "not a file that torch.save wrote",
    ]
    assert not (tmp_path / "b.pt").exists()


# downloads


def tar_of(entries, suffix="gz"):
    """A tar archive of {name: content or TarInfo}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{suffix}") as tar:
        for name, content in entries.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, 600_000, np.uint8).tobytes()  # does not compress
IMAGENET = "imagenet_sub_nfg50_ncls2_nproto20_mtl_exp01"
ARCHIVE = tar_of({
    "logs/notes.txt": b"hello",
    f"logs/{NAME}/run_0_iteration_7_model.pth": NOISE,
    f"logs/{NAME}/seed_1993_cifar100_order_run_0.pkl": b"order",
    f"logs/{IMAGENET}/run_0_iteration_24_model.pth": b"network",
})  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.body`; `server.faults` holds, per request, after how many bytes to break off (None: do not)."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = (
            int(asked[6:-1]) if asked and server.ranges and self.headers.get("If-Range") in (None, server.tag) else 0
        )
        if start and start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.send_header("Content-Type", server.kind)
        self.send_header("ETag", server.tag)
        self.end_headers()
        stop = server.faults.pop(0) if server.faults else None
        self.wfile.write(server.body[start:] if stop is None else server.body[start : start + stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.status, server.kind, server.tag = ARCHIVE, 200, "application/gzip", '"one"'
        server.ranges, server.faults, server.asked = True, [], []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/logs.tar.gz"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def download(server, tmp_path, monkeypatch, capsys):
    """Runs download_checkpoints.py on the server's archive; returns (standard output, standard error)."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)

    def run(*arguments, status=0, url=server.url):
        flags = ["--url", url, "--out", str(tmp_path / "out"), *map(str, arguments)]
        assert download_checkpoints.main(flags) == status
        out, error = capsys.readouterr()
        if status:
            last = error.rstrip("\n").splitlines()[-1]
            assert last.startswith("download_checkpoints.py: ")
            assert "Traceback" not in error
        return out, error

    return run


def contents(folder):
    """The files below a folder, without the record of what was downloaded."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name != ".downloaded.json"}


WHOLE = {
    f"{NAME}/run_0_iteration_7_model.pth": NOISE,
    f"{NAME}/seed_1993_cifar100_order_run_0.pkl": b"order",
    f"{IMAGENET}/run_0_iteration_24_model.pth": b"network",
}
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


def test_download_unpacks_whole_folders_once(download, server, tmp_path):
    out, _ = download("--sha256", SHA256.upper())
    assert SHA256 in out
    assert "not in the archive: imagenet\n" in out
    assert contents(tmp_path / "out") == WHOLE
    out, _ = download()
    assert "there already" in out
    assert server.asked == [None]


def test_one_set_then_another(download, tmp_path):
    download("--set", "imagenet_sub")
    assert contents(tmp_path / "out").keys() == {f"{IMAGENET}/run_0_iteration_24_model.pth"}
    download("--set", "cifar100")
    assert contents(tmp_path / "out") == WHOLE
    _, error = download("--set", "imagenet", status=2)
    assert "holds no folder of imagenet, like" in error


def test_a_dropped_connection_is_taken_up_where_it_broke(download, server, tmp_path):
    server.faults = [200_000, 100_000]
    download("--sha256", SHA256)
    first, second, third = server.asked
    assert first is None
    assert 0 < int(second[6:-1]) <= 200_000
    assert int(second[6:-1]) < int(third[6:-1]) <= 300_000
    assert contents(tmp_path / "out") == WHOLE


def test_an_interrupted_download_is_continued_by_the_next_command(download, server, tmp_path):
    server.faults = [200_000] + [0] * fetch.TRIES
    _, error = download(status=2)
    assert "the same command continues" in error
    (part,) = (tmp_path / "out").glob("*.part")
    size = part.stat().st_size
    assert 0 < size <= 200_000
    assert not any(p.is_dir() for p in (tmp_path / "out").iterdir())
    server.asked.clear()
    download("--sha256", SHA256)
    assert server.asked == [f"bytes={size}-"]
    assert contents(tmp_path / "out") == WHOLE


def test_a_file_that_changed_meanwhile_is_downloaded_anew(download, server, tmp_path):
    server.faults = [200_000] + [0] * fetch.TRIES
    download(status=2)
    server.tag, server.body = '"two"', tar_of({f"{NAME}/run_0_iteration_7_model.pth": b"new" + NOISE})
    download("--set", "cifar100")
    assert contents(tmp_path / "out") == {f"{NAME}/run_0_iteration_7_model.pth": b"new" + NOISE}


def test_a_server_that_cannot_continue(download, server, tmp_path):
    server.ranges, server.faults = False, [200_000]
    download("--sha256", SHA256)
    assert contents(tmp_path / "out") == WHOLE


def test_a_part_that_is_whole_already(download, server, tmp_path):
    """Killed between the last byte and the renaming."""
    server.faults = [200_000] + [0] * fetch.TRIES
    download(status=2)
    (part,) = (tmp_path / "out").glob("*.part")
    part.write_bytes(ARCHIVE)
    download("--sha256", SHA256)
    assert contents(tmp_path / "out") == WHOLE


def test_a_wrong_hash_is_refused_and_nothing_is_left(download, server, tmp_path):
    _, error = download("--sha256", "0" * 64, status=2)
    assert f"--sha256 {'0' * 64}: the file at {server.url} has {SHA256}" in error
    assert contents(tmp_path / "out") == {}
    _, error = download("--sha256", "abc", status=2)
    assert "--sha256 abc: needed are 64 hexadecimal digits" in error


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
def test_an_html_page_is_refused(kind, download, server, tmp_path):
    server.kind, server.body = kind, b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head>"
    _, error = download(status=2)
    assert "an HTML page ('Google Drive - Quota exceeded') instead of a file" in error
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize("code", [404, 503])
def test_errors_of_the_server(code, download, server):
    server.status = code
    _, error = download(status=2)
    assert str(code) in error
    assert len(server.asked) == (1 if code == 404 else fetch.TRIES)


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MODEL = f"logs/{NAME}/run_0_iteration_7_model.pth"
MALICIOUS = {
    "absolute": {MODEL: b"fine", "{tmp}/escaped": b"bad"},
    "dots": {MODEL: b"fine", f"logs/{NAME}/../../../escaped": b"bad"},
    "dots in an unwanted folder": {MODEL: b"fine", "../escaped": b"bad"},
    "symbolic link": {MODEL: b"fine", "l": link(f"logs/{NAME}/l", "../../..", tarfile.SYMTYPE)},
    "through a link": {"l": link(f"logs/{NAME}", "{tmp}", tarfile.SYMTYPE), f"logs/{NAME}/escaped": b"bad"},
    "hard link": {MODEL: b"fine", "l": link(f"logs/{NAME}/l", "/etc/passwd", tarfile.LNKTYPE)},
    "device": {MODEL: b"fine", "l": link(f"logs/{NAME}/l", "", tarfile.FIFOTYPE)},
    "two folders of one name": {MODEL: b"fine", f"other/{NAME}/a": b"bad"},
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_a_malicious_archive_is_refused_and_nothing_is_left(kind, download, server, tmp_path):
    entries = {name.format(tmp=tmp_path): content for name, content in MALICIOUS[kind].items()}
    server.body = tar_of(entries)
    _, error = download(status=2)
    assert "refused or damaged" in error
    assert contents(tmp_path) == {}
    assert [p for p in tmp_path.rglob("*") if p.is_symlink() or p.is_fifo()] == []


@pytest.mark.parametrize("kind", ["truncated gzip", "truncated tar", "wrong checksum", "no archive", "empty"])
def test_a_damaged_archive_leaves_nothing(kind, download, server, tmp_path):
    plain = tar_of({f"{NAME}/a": b"a" * 5000, f"{IMAGENET}/b": NOISE}, suffix="")
    server.body = {
        "truncated gzip": ARCHIVE[:-200_000],
        "truncated tar": plain[:-200_000],
        "wrong checksum": ARCHIVE[:-8] + b"12345678",
        "no archive": NOISE,
        "empty": b"",
    }[kind]
    _, error = download(status=2)
    assert "refused or damaged" in error
    assert contents(tmp_path / "out") == {}


def test_other_urls(download, tmp_path):
    archive = tmp_path / "my logs.tar"
    archive.write_bytes(ARCHIVE)
    download(url=archive.as_uri())
    assert contents(tmp_path / "out") == WHOLE
    assert archive.exists()  # it is not ours
    for url, message in (
        ((tmp_path / "none").as_uri(), "there is no such file"),
        ("ftp://a/b", "http://..., https://"),
    ):
        assert message in download(url=url, status=2)[1]


def test_out_that_cannot_be_made(capsys):
    assert download_checkpoints.main(["--url", "file:///nothing", "--out", "/dev/null/x"]) == 2
    assert "--out /dev/null/x: cannot be written" in capsys.readouterr().err


def test_google_drive_goes_through_gdown(download, tmp_path, monkeypatch):
    calls = []

    def gdown_download(id, output, **_):
        calls.append(id)
        if len(calls) == 1:
            raise gdown.exceptions.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users have viewed")
        page = b"<html><title>Quota exceeded</title>"
        Path(output).write_bytes(page if len(calls) == 2 else ARCHIVE)

    monkeypatch.setattr(gdown, "download", gdown_download)
    url = download_checkpoints.DRIVE_URL
    _, error = download(url=url, status=2)
    assert "Too many users have viewed" in error
    assert "--url file:///" in error
    assert error.count("\n") == 1
    _, error = download(url=url, status=2)
    assert "an HTML page ('Quota exceeded') instead of a file" in error
    download(url=url)
    assert contents(tmp_path / "out") == WHOLE
    assert calls == [download_checkpoints.DRIVE_ID] * 3


@pytest.mark.skipif(
    not (ROOT / ".venv" / "requirements.installed").is_file()
    or (ROOT / ".venv" / "requirements.installed").read_bytes() != (ROOT / "requirements.txt").read_bytes(),
    reason="the scripts would first install the packages",
)
def test_the_scripts_download_and_evaluate(theirs, cifar100_mini, tmp_path):
    archive = tmp_path / "logs.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(theirs[0], f"logs/{NAME}")
    variables = {"CHECKPOINTS_DIR": tmp_path / "a", "RESULTS_DIR": tmp_path / "results", "CIFAR100_DIR": cifar100_mini,
                 "CHECKPOINTS_URL": archive.as_uri()}  # fmt: skip
    run = functools.partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=300,
                            env=os.environ | {k: str(v) for k, v in variables.items()})  # fmt: skip
    process = run(["bash", ROOT / "eval" / "run_eval.sh", "cifar100"])
    assert (process.returncode, process.stderr) == (0, "")
    assert cnn(evaluation(tmp_path / "results" / NAME)) == theirs[1]
    process = run(["bash", ROOT / "eval" / "run_eval.sh", "mnist"])
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
