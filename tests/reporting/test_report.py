"""The page on runs (mnemonics/reporting/page.py, scripts/report.py): its content, and what a browser makes of it."""

import base64
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnemonics import algorithm as experiment
from mnemonics.experiment.state import parse_args
from mnemonics.reporting.page import write_report
from mnemonics.reporting.paper import load_paper
from mnemonics.reporting.read import Confusion, load_results, read_confusion, write_confusion

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "report.py"
TINY = ("--dataset digits --max_images_per_class 60 --nb_phases 5 --network resnet8 --epochs 1 --nb_protos 2 "
        "--mnemonics_val_batch_size 64 "
        "--mnemonics_epochs 1 --mnemonics_steps 1 --mnemonics_outer_lr 0.1 --finetune_epochs 1").split()  # fmt: skip
NASTY = "<script>alert(1)</script> & \"quoted\" 'x' $y_{1}$"
WIDTHS = (400, 1400)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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
def runs(tmp_path_factory):
    """Two finished runs on digits, with the reports that they wrote."""
    folder = tmp_path_factory.mktemp("runs")
    for exemplars in ("herding", "mnemonics"):
        out = folder / f"a rather long name of a run with {exemplars} exemplars"
        experiment.run(parse_args([*TINY, "--exemplars", exemplars, "--out", str(out)]))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    """The report of the first run, of the second, and their comparison."""
    comparison = tmp_path_factory.mktemp("pages") / "comparison.html"
    write_report(runs, comparison)
    return [runs[0] / "report.html", runs[1] / "report.html", comparison]


def command(*arguments):
    """scripts/report.py in this process. Returns the exit status."""
    spec = importlib.util.spec_from_file_location("report_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main([str(argument) for argument in arguments])


def two_decimals(value):
    return f"{value:.2f}"


# what is in it


def test_the_report_of_a_run_has_all_its_numbers(runs, pages):
    for run, path in zip(runs, pages, strict=False):
        results, page = load_results(run), Page(path)
        headline = results["headline"]
        for name in ("cnn", "nme"):
            row = [f"{name.upper()}{'*' * (name == headline)}"]
            row += [
                two_decimals(results["summary"][k][name]) for k in ("average_accuracy", "last_accuracy", "forgetting")
            ]
            assert row in page.rows
        for phase in results["phases"]:
            accuracies = [two_decimals(phase["accuracy"][k]) for k in ("cnn", "nme")]
            (row,) = [r for r in page.rows if r[0] == str(phase["phase"]) and r[4:6] == accuracies and len(r) > 8]
            assert row[1] == str(phase["classes_seen"])
            assert f"{phase['seconds']['train']:.2f}" in [cell for r in page.rows if r[0] == row[0] for cell in r]
        assert results["class_order_sha256"] in page.text
        assert results["environment"]["command"] in page.text
        for name, value in results["config"].items():
            assert re.search(
                rf"{name}\s*{'on' if value is True else 'off' if value is False else value or ''}", page.text
            )
        for words in ("average accuracy = mean over all 6 phases", "forgetting = ", "n runs = 1", "* = headline"):
            assert words in page.text


def test_validation_losses_are_shown_where_exemplars_were_optimised(runs, pages):
    losses = load_results(runs[1])["phases"][3]["exemplar_validation_loss"]
    row = ["3", *(f"{losses[key]:.4f}" for key in ("start", "optimised", "rounded"))]
    assert [r[:4] for r in Page(pages[1]).rows].count(row) == 1
    assert "loss before" not in Page(pages[0]).text


def test_the_comparison_has_both_runs_side_by_side(runs, pages):
    page, results = Page(pages[2]), [load_results(run) for run in runs]
    for phase in range(6):
        accuracies = [two_decimals(r["phases"][phase]["accuracy"][r["headline"]]) for r in results]
        assert [str(phase), *accuracies] in page.rows
    assert ["exemplars", "herding", "mnemonics"] in page.rows
    assert page.rows.index(["exemplars", "herding", "mnemonics"]) < [r[0] for r in page.rows].index("out")
    for run, result in zip(runs, results, strict=True):
        (row,) = [r for r in page.rows if r[0] == run.name]
        expected = [result["summary"][k]["cnn"] for k in ("average_accuracy", "last_accuracy", "forgetting")]
        assert row[-4:] == ["CNN*", *map(two_decimals, expected)]


def test_a_page_holds_everything_and_runs_nothing(pages):
    for path in pages:
        page = Page(path)
        assert not page.all("script")
        assert not re.search(
            r"https?:|//[a-z]|url\((?!#)|@import|\son[a-z]+=", re.sub(r"base64,[^\"]*", "", page.source)
        )
        policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
        assert policy.startswith("default-src 'none'")
        assert all(tag.get("src", "data:").startswith("data:image/png;base64,") for _, tag in page.tags if "src" in tag)
        for image in page.all("img"):
            assert image["alt"]
            with Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) as picture:
                assert len(picture.convert("L").getcolors()) > 5
        for svg in page.all("svg"):
            assert svg["role"] == "img"
            assert len(svg["aria-label"]) > 20
        ids = [tag["id"] for _, tag in page.tags if "id" in tag]
        assert len(ids) == len(set(ids)), [i for i in ids if ids.count(i) > 1][:5]
        used = set(re.findall(r"(?:url\(|href=\")#([^\")]+)", page.source))
        assert used <= set(ids)
        assert path.stat().st_size < 500_000
    assert len(Page(pages[1]).all("svg")) == 5  # two curves, origin, confusion, time
    assert len(Page(pages[1]).all("img")) == 4


def test_curves_are_where_the_numbers_say(runs, pages):
    """The line of the headline classifier, read back from the SVG, is that of results.json but for scale and offset."""
    results = load_results(runs[0])
    svg = re.search(r'<svg[^>]*aria-label="accuracy on all.*?</svg>', Page(pages[0]).source, re.S)[0]
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--c0', svg)
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", paths[0]), dtype=float)
    measured = [(p["classes_seen"], p["accuracy"][results["headline"]]) for p in results["phases"]]
    assert len(points) == 6
    for axis, sign in ((0, 1), (1, -1)):  # the y axis of SVG points down
        mine, its = points[:, axis], np.array(measured)[:, axis]
        scale, offset = np.polyfit(its, mine, 1)
        assert scale * sign > 0
        assert np.allclose(scale * its + offset, mine, atol=0.01)


def test_the_confusion_matrix_is_that_of_the_last_phase(runs, pages):
    for run in runs:
        confusion, last = read_confusion(run), load_results(run)["phases"][-1]
        assert (confusion.phase, confusion.classifier) == (5, "cnn")
        assert round(100 * np.trace(confusion.counts) / confusion.counts.sum(), 2) == last["accuracy"]["cnn"]
        first, total = np.trace(confusion.counts[:5, :5]), confusion.counts[:5].sum()
        assert round(100 * first / total, 2) == last["phase0_accuracy"]["cnn"]
        order = load_results(run)["class_order"]
        assert confusion.class_names == [str(c) for c in order]
    as_new = 100 * confusion.counts[:9, 9:].sum() / confusion.counts[:9].sum()
    assert f"Of the old classes' images, {as_new:.2f}% are taken" in Page(pages[1]).text


def test_the_paper_stands_beside_runs_of_its_protocol_only(tmp_path):
    source = json.loads((ROOT / "results" / "cifar100_cpu" / "lucir_epochs6.json").read_text())
    curve = load_paper()["figure4_accuracy_per_phase"]["cifar100"]["5"]["lucir"]
    label = f"the paper's lucir (figure 4), average {np.mean(curve):.2f}%"
    for settings, same in (
        ({}, True),
        ({"nb_protos": 10}, False),
        ({"order_seed": 1}, False),
        ({"nb_cl_fg": 40}, False),
    ):
        path = tmp_path / "lucir.json"
        path.write_text(json.dumps(source | {"config": source["config"] | settings}))
        write_report([path], tmp_path / "page.html")
        page = Page(tmp_path / "page.html")
        assert (label in page.text) is same
        assert ("63.17" in [cell for row in page.rows for cell in row]) is same
        assert ("--epochs 6 (paper: 160)" in page.text) is same


def test_unfinished_runs_and_missing_files_are_told(runs, tmp_path):
    results = load_results(runs[1])
    results["phases"] = results["phases"][:3]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert command(tmp_path / "run") == 0
    page = Page(tmp_path / "run" / "report.html")
    for words in ("Unfinished.", "3 of 6 phases are finished", "No confusion matrix: there is no confusion.json",
                  "No pictures of exemplars", "mean over the 3 finished of 6 phases"):  # fmt: skip
        assert words in page.text
    assert "Unfinished" not in Page(runs[1] / "report.html").text


def test_text_from_outside_is_text(runs, tmp_path):
    run = tmp_path / r"<b>bold \1 \N & 'x'"
    shutil.copytree(runs[0], run)
    results = load_results(run)
    results["config"]["data_dir"] = results["environment"]["command"] = NASTY
    (run / "results.json").write_text(json.dumps(results))
    found = read_confusion(run)
    write_confusion(run, Confusion(5, "cnn", [NASTY[:8], *found.class_names[1:]], found.counts))
    for paths in ([run], [run, runs[1]]):
        write_report(paths, tmp_path / "page.html")
        page = Page(tmp_path / "page.html")
        assert not page.all("script")
        assert not page.all("b")
        assert page.text.count(NASTY) >= 2 or len(paths) == 2
        assert NASTY in page.text
        assert run.name in page.text
        assert "<script" in page.text  # a class name, in the confusion matrix


def test_the_same_runs_give_the_same_page(runs, pages, tmp_path):
    write_report(runs, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == pages[2].read_bytes()


def test_a_thousand_classes_stay_small(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    predicted = np.random.default_rng(0).integers(0, 1000, (1000, 50))
    counts = np.array([np.bincount(row, minlength=1000) for row in predicted]) + 50 * np.eye(1000, dtype=int)
    write_confusion(run, Confusion(5, "cnn", [f"n{i:08d}" for i in range(1000)], counts))
    write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 1_500_000
    assert "n00000007" not in Page(tmp_path / "page.html").text


# the command


def test_the_command_writes_into_the_run_folder_or_where_it_is_told(runs, tmp_path, monkeypatch, capsys):
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    done = subprocess.run([sys.executable, SCRIPT, "run"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run/report.html: ")
    assert Page(tmp_path / "run" / "report.html").all("svg")
    monkeypatch.chdir(tmp_path)
    assert command("run", runs[1]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert Page(tmp_path / "report.html").rows[1][0] == "run"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "not the results of a run"),
        ('{"phases": []}', "no phase is finished yet"),
        ("without seconds", "not the results of a run (KeyError: 'peak_memory_bytes')"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_and_status_2(runs, tmp_path, capsys, content, reason):
    bad = tmp_path / "bad"
    bad.mkdir()
    if content == "without seconds":
        results = load_results(runs[0])
        del results["phases"][2]["peak_memory_bytes"]
        content = json.dumps(results)
    if content is not None:
        (bad / "results.json").write_text(content)
    assert command(runs[0], bad, "--out", tmp_path / "page.html") == 2
    output = capsys.readouterr()
    assert output.err.startswith(f"report.py: {bad / 'results.json'}: {reason}")
    assert (output.err.count("\n"), output.out) == (1, "")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"phase": 5, "classifier": "cnn", "class_names": ["a"], "counts": [[1, 2]]}']
)
def test_a_damaged_confusion_matrix_is_one_line_and_status_2(runs, tmp_path, capsys, content):
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "confusion.json").write_text(content)
    assert command(tmp_path / "run", "--out", tmp_path / "page.html") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"report.py: {tmp_path}/run/confusion.json: not ")
    assert error.count("\n") == 1


def test_a_page_that_cannot_be_written_is_one_line_and_status_2(runs, tmp_path, capsys):
    out = tmp_path / "missing" / "page.html"
    assert command(runs[0], "--out", out) == 2
    error = f"report.py: --out {out}: cannot be written (No such file or directory)\n"
    assert capsys.readouterr().err == error


# in a browser


def chromium(*arguments, folder):
    if CHROMIUM is None:
        pytest.skip("no chromium here (apt-get install chromium): nothing looks at the pages")
    quiet = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
             "--disable-component-update --disable-sync --hide-scrollbars").split()  # fmt: skip
    command = [CHROMIUM, *quiet, f"--user-data-dir={folder / 'profile'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


MEASURE = """<script>
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, width = frame.clientWidth;
    const inScroll = e => e.parentElement && e.parentElement.closest(".scroll, svg");
    const light = colour => colour.match(/[\\d.]+/g).map(Number).slice(0, 3).reduce((a, b) => a + b) / 765;
    const all = selector => [...page.querySelectorAll(selector)], box = e => e.getBoundingClientRect();
    const style = e => frame.contentWindow.getComputedStyle(e);
    return {
      width, inner: frame.contentWindow.innerWidth, scroll: page.documentElement.scrollWidth,
      images: page.images.length, broken: [...page.images].filter(i => !i.complete || !i.naturalWidth).length,
      outside: all("body *").filter(e => !inScroll(e) && box(e).right > width + 1).map(e => e.outerHTML.slice(0, 80)),
      svgs: all("svg").map(e => [box(e).width, box(e).height]), height: page.documentElement.scrollHeight,
      letters: Math.min(...all("svg text").map(e => Math.max(box(e).width, box(e).height))),  // some stand upright
      background: light(style(page.body).backgroundColor), ink: light(style(page.body).color),
      axes: light(style(page.querySelector("svg text")).fill),
    };
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(found).replace(/&/g, "&amp;").replace(/</g, "&lt;") + "</pre>";
};
</script>"""


def look(paths, folder, *arguments):
    """Each page in a frame of each of WIDTHS, measured from outside, so that the page itself is as it was written."""
    frame = '<iframe style="border:0;width:{}px;height:900px" srcdoc="{}"></iframe>'
    sources = [html.escape(path.read_text(encoding="utf-8")) for path in paths]
    frames = [frame.format(width, source) for source in sources for width in WIDTHS]
    (folder / "frames.html").write_text(f"<!DOCTYPE html><body>{''.join(frames)}</body>{MEASURE}", encoding="utf-8")
    dom = chromium("--dump-dom", *arguments, (folder / "frames.html").as_uri(), folder=folder)
    return json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", dom, re.S)[1]))


def test_in_a_browser_nothing_is_broken_or_wider_than_the_screen(pages, tmp_path):
    found = look(pages, tmp_path)
    assert [f["inner"] for f in found] == [*WIDTHS] * 3
    for frame in found:
        assert frame["scroll"] <= frame["width"], frame
        assert frame["outside"] == []
        assert (frame["broken"], frame["images"] > 0) == (0, True)
        assert all(200 < width < frame["width"] and height > 100 for width, height in frame["svgs"])
        assert frame["letters"] > 7  # pixels: they can be read
        assert frame["background"] > 0.9
        assert max(frame["ink"], frame["axes"]) < 0.2
        assert frame["height"] > 2000


def test_in_a_browser_a_page_too_wide_would_be_noticed(pages, tmp_path):
    wide = tmp_path / "wide.html"
    source = pages[0].read_text().replace("</main>", '<div style="width:2000px">x</div><img src="data:,x"></main>')
    wide.write_text(source)
    found = look([wide], tmp_path)
    assert all(f["scroll"] >= 2000 and f["outside"] and f["broken"] == 1 for f in found)


def test_in_a_browser_the_dark_page_is_dark_and_its_figures_are_light_on_it(pages, tmp_path):
    for frame in look(pages[1:2], tmp_path, "--blink-settings=preferredColorScheme=0"):
        assert frame["background"] < 0.15
        assert min(frame["ink"], frame["axes"]) > 0.8


def test_screenshots_show_figures_in_their_colours(pages, tmp_path):
    for scheme, arguments in {"light": [], "dark": ["--blink-settings=preferredColorScheme=0"]}.items():
        shot = tmp_path / f"{scheme}.png"
        chromium(f"--screenshot={shot}", "--window-size=1400,1800", *arguments, pages[1].as_uri(), folder=tmp_path)
        with Image.open(shot) as image:
            picture = np.asarray(image.convert("RGB"))
        assert picture.shape == (1800, 1400, 3)
        for colour in {"light": ((0, 114, 178), (213, 94, 0)), "dark": ((63, 155, 220), (255, 132, 64))}[scheme]:
            assert (picture == colour).all(axis=2).sum() > 200
