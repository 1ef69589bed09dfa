"""The page on runs (mnemonics/reporting/page.py, scripts/report.py)."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from reports import ROOT, TINY, make_results, tiny_run, written

from mnemonics import algorithm
from mnemonics.experiment.results import Confusion, read_confusion, write_confusion
from mnemonics.experiment.state import parse_args
from mnemonics.reporting.page import measured_curves, panels, write_report
from mnemonics.reporting.paper import load_paper
from mnemonics.reporting.read import load_results
from mnemonics.reporting.text import comparison_table, duration, outlook
from scripts.report import main

NASTY = "<script>alert(1)</script> & \"quoted\" 'x' $y_{1}$"


class Page(HTMLParser):
    """What an HTML file holds: `tags` with their attributes, `rows` of tables, `text`."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.text, self.cell = [], [], "", None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        self.cell = "" if tag in ("th", "td") else self.cell

    def handle_data(self, data):
        self.text += data
        self.cell = None if self.cell is None else self.cell + data

    def handle_endtag(self, tag):
        if tag in ("th", "td"):
            self.rows[-1].append(self.cell)
            self.cell = None

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs():
    return [tiny_run(kind) for kind in ("herding", "mnemonics")]


@pytest.fixture(scope="module")
def comparison(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("pages") / "comparison.html"
    write_report(runs, path)
    once = path.read_bytes()
    write_report(runs, path)
    assert path.read_bytes() == once  # the same runs give the same page
    return path


def two_decimals(values):
    return [f"{value:.2f}" for value in values]


def test_the_report_of_a_run_has_all_its_numbers(runs):
    results, page = load_results(runs[1]), Page(runs[1] / "report.html")  # which the run wrote
    for key, title in (("average_accuracy", "average accuracy %"), ("forgetting", "forgetting, points")):
        assert [title, *two_decimals(results["summary"][key].values())] in page.rows
    for phase in results["phases"]:
        name, losses = str(phase["phase"]), phase["exemplar_validation_loss"]
        rows = [row for row in page.rows if row[0] == name]
        assert [row[4:6] for row in rows].count(two_decimals(phase["accuracy"][k] for k in ("cnn", "nme"))) == 1
        assert [name, *(f"{losses[key]:.4f}" for key in ("start", "optimised", "rounded"))] in [r[:4] for r in rows]
        origin = two_decimals(phase["accuracy_by_phase_of_origin"]["cnn"])
        assert [name, *origin, *[""] * (6 - len(origin))] in page.rows
        assert f"{phase['seconds']['train']:.2f}" in rows[-1]
    facts = [results["class_order_sha256"], results["environment"]["command"], "average accuracy = mean over all 6"]
    assert all(words in page.text for words in facts)
    for name, value in results["config"].items():
        assert re.search(rf"{name}\s*{'on' if value is True else 'off' if value is False else value or ''}", page.text)
    assert (len(page.all("svg")), len(page.all("img"))) == (3, 4)  # two curves, confusion


@pytest.mark.parametrize(
    ("losses", "settings", "words"),
    [
        (None, {}, "real images, as chosen"),
        ({"start": 2.0, "rounded": 1.0}, {}, "real images | optimised | amplified difference"),
        ({"start": 2.0, "rounded": 2.0}, {}, "real images, as chosen"),  # they were no better, and so not taken
        ({"start": 2.0, "rounded": 2.0}, {"mnemonics_fall_back": False},
         "real images | optimised | amplified difference"),
        ({"start": 2.0, "rounded": 2.0}, {"exemplar_format": "avif:80"},
         "real images | stored as avif:80 | amplified difference"),
        ({"start": 2.0, "rounded": 1.0}, {"exemplar_format": "avif:80"},
         "real images | optimised and stored as avif:80 | amplified difference"),
    ],
)  # fmt: skip
def test_a_picture_is_said_to_show_what_it_shows(losses, settings, words):
    phase = {} if losses is None else {"exemplar_validation_loss": losses}
    assert panels({"mnemonics_fall_back": True} | settings, phase) == words


def test_a_results_file_stands_for_its_run_folder(runs, tmp_path):
    out = tmp_path / "page.html"
    assert main([str(runs[0] / "results.json"), "--out", str(out)]) == 0
    assert (len(Page(out).all("svg")), len(Page(out).all("img"))) == (3, 4)


def test_the_comparison_has_both_runs_side_by_side(runs, comparison):
    page = Page(comparison)
    for run in runs:
        results = load_results(run)
        accuracies = [phase["accuracy"]["cnn"] for phase in results["phases"]]
        summary = [results["summary"][key]["cnn"] for key in ("average_accuracy", "forgetting")]
        assert [run.name, "2 per class", "CNN", *two_decimals([*accuracies, *summary])] in page.rows
    assert page.rows.index(["exemplars", "herding", "mnemonics"]) < [row[0] for row in page.rows].index("out")
    assert page.text.count("loss before") == 1


def test_a_page_holds_everything_and_runs_nothing(comparison):
    page = Page(comparison)
    assert not page.all("script")
    outside = r"https?:|//[a-z]|url\((?!#)|@import|\son[a-z]+="
    assert not re.search(outside, re.sub(r"base64,[^\"]*", "", page.source))
    assert page.all("meta")[-1]["content"].startswith("default-src 'none'")
    for image in page.all("img"):
        with Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))) as picture:
            assert len(picture.convert("L").getcolors()) > 5
    assert all(len(image["alt"]) > 20 for image in page.all("img"))
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page.source)) <= set(ids)
    assert comparison.stat().st_size < 500_000


def test_curves_are_where_the_numbers_say(runs):
    """The line of the headline classifier, read back from the SVG, is that of results.json but for scale and offset."""
    svg = re.search(r'<svg[^>]*aria-label="Accuracy on the test images of all.*?</svg>',
                    Page(runs[0] / "report.html").source, re.S)[0]  # fmt: skip
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--c0', svg)
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", paths[0]), dtype=float)
    measured = np.array([(p["classes_seen"], p["accuracy"]["cnn"]) for p in load_results(runs[0])["phases"]])
    for axis, sign in ((0, 1), (1, -1)):  # the y axis of SVG points down
        scale, offset = np.polyfit(measured[:, axis], points[:, axis], 1)
        assert scale * sign > 0
        assert np.allclose(scale * measured[:, axis] + offset, points[:, axis], atol=0.01)


def test_curves_of_one_run_are_its_classifiers_and_of_several_their_headlines():
    icarl, lucir = make_results(baseline="icarl"), make_results()
    one, several = (measured_curves(runs, "accuracy") for runs in ([("a", icarl)], [("a", icarl), ("b", lucir)]))
    labels = [(curve.label, curve.dashed) for curve in (*one, *several)]
    assert labels[:2] == [("NME (headline), average 60.00%", False), ("CNN, average 1.00%", True)]
    assert labels[2:] == [("a: NME, average 60.00%", False), ("b: CNN, average 60.00%", False)]
    assert (one[0].x, one[0].y) == ([50, 60, 70, 80, 90, 100], [60, 59, 58, 57, 56, 55])


def test_the_confusion_matrix_is_that_of_the_last_phase(runs):
    confusion, results = read_confusion(runs[1]), load_results(runs[1])
    counts, last = confusion.counts, results["phases"][-1]
    assert (confusion.phase, confusion.classifier) == (5, "cnn")
    assert confusion.class_names == [str(c) for c in results["class_order"]]
    assert round(100 * np.trace(counts) / counts.sum(), 2) == last["accuracy"]["cnn"]
    assert round(100 * np.trace(counts[:5, :5]) / counts[:5].sum(), 2) == last["phase0_accuracy"]["cnn"]
    as_new = 100 * counts[:9, 9:].sum() / counts[:9].sum()
    assert f"Of the old classes' images, {as_new:.2f}% are taken" in Page(runs[1] / "report.html").text


@pytest.mark.parametrize("change", [{}, {"nb_protos": 10}, {"order_seed": 1}, {"nb_cl_fg": 40}])
def test_the_paper_stands_beside_runs_of_its_protocol_only(tmp_path, change):
    results = json.loads((ROOT / "results" / "cifar100_cpu" / "lucir_epochs6.json").read_text())
    path = written(tmp_path / "lucir.json", results | {"config": results["config"] | change})
    write_report([path], tmp_path / "page.html")
    page, same = Page(tmp_path / "page.html"), not change
    curve = load_paper()["figure4_accuracy_per_phase"]["cifar100"]["5"]["lucir"]
    assert (f"the paper's lucir (figure 4), average {np.mean(curve):.2f}%" in page.text) is same
    assert ("63.17" in [cell for row in page.rows for cell in row]) is same
    assert ("--epochs 6 (paper: 160)" in page.text) is same


def test_an_unfinished_run_is_told_and_text_from_outside_is_text(tmp_path):
    run = tmp_path / r"<b>bold \1 \N & 'x'"
    results = make_results(finished=3, dataset="digits", data_dir=NASTY)
    written(run / "results.json", results | {"environment": {"command": NASTY}})
    write_confusion(run, Confusion(2, "cnn", [NASTY[:8], "b"], np.eye(2, dtype=int)))
    assert main([str(run)]) == 0
    page = Page(run / "report.html")
    assert not page.all("script")
    assert not page.all("b")
    assert page.text.count(NASTY) == 2
    for words in ("3 of 6 phases are finished", "No pictures of exemplars", "mean over 3 of 6", run.name, "<script"):
        assert words in page.text
    assert not page.rows[0][-1].startswith("CNN in")
    assert "No confusion matrix" not in page.text


def test_the_page_of_a_run_that_goes_on_reloads_itself_and_says_how_far_it_is(tmp_path, monkeypatch):
    def write_and_look(*arguments, **options):
        write_report(*arguments, **options)
        pages.append(Page(arguments[-1]))

    pages, flags = [], TINY.replace("--nb_phases 5", "--nb_cl 3,2").split()
    monkeypatch.setattr(algorithm, "write_report", write_and_look)
    algorithm.run(parse_args([*flags, "--exemplars", "herding", "--out", str(tmp_path)]))
    assert len(pages) == 3
    for done, page in enumerate(pages, start=1):
        reloads = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "refresh"]
        first = re.search(r"<body>\s*<(.*?)<", page.source, re.S)[1]
        assert not page.all("script")
        if done == len(pages):
            assert (reloads, first.strip()) == ([], "header>")
        else:
            assert int(reloads[0]) >= 10
            assert f"{done} of 3 phases are finished; phase {done} takes about " in first
            assert re.search(r"Written at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", first)


@pytest.mark.parametrize(
    ("finished", "settings", "expected"),
    [  # phase 0: 25,000 images in 2.25 s; 10 classes of 500 images in each that is left, and 20 exemplars per old class
        (1, {}, "1 of 6 phases are finished; phase 1 takes about 0.54 seconds and all that are left 2.9 seconds"),
        (1, {"total_memory": 1000}, "phase 1 takes about 0.54 seconds and all that are left 2.7 seconds"),
        (1, {"baseline": "finetune"}, "phase 1 takes about 0.45 seconds and all that are left 2.2 seconds"),
        (1, {"baseline": "joint"}, "phase 1 takes about 2.7 seconds and all that are left 18 seconds"),
        (5, {}, "5 of 6 phases are finished; phase 5 takes about 68 minutes, and is the last one"),
    ],
)
def test_the_outlook_is_images_to_come_at_the_pace_so_far(finished, settings, expected):
    results = make_results(finished=finished, nb_cl_fg=50, nb_cl=10, **settings)
    results |= {"data": {"train_images": [500] * 100}, "class_order": list(range(100))}
    for phase in results["phases"][1:]:
        phase["seconds"]["train"] = 15_000.0
    assert outlook(results).endswith(expected)


def test_durations_have_the_unit_that_fits():
    durations = [duration(seconds) for seconds in (0.5, 95, 600, 6100, 3 * 86400, 30 * 86400)]
    assert durations == ["0.5 seconds", "95 seconds", "10 minutes", "1.7 hours", "72 hours", "30 days"]


def test_the_command_writes_where_it_is_told_and_tells_a_mistake_in_one_line(tmp_path, monkeypatch, capsys, told):
    monkeypatch.chdir(tmp_path)
    runs = [written(tmp_path / name, make_results()) for name in ("a.json", "b.json")]
    assert main([str(run) for run in runs]) == 0
    table = comparison_table([("a", make_results()), ("b", make_results())])
    assert capsys.readouterr().out.startswith(f"{table}\n\nreport.html: ")
    assert [row[0] for row in Page(tmp_path / "report.html").rows[1:3]] == ["a", "b"]
    out = tmp_path / "missing" / "page.html"
    error = told(main, runs[0], "--out", out)
    assert error.startswith(f"report.py: --out {out}: cannot be written (No such file or directory)")
    written(tmp_path / "bad" / "results.json", "{")
    error = told(main, runs[0], "bad", "--out", "page.html")
    assert error.startswith("report.py: bad/results.json: not JSON")
    assert not (tmp_path / "page.html").exists()
