"""results/README.md from its template and the committed results (scripts/benchmark/results_page.py)."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
from test_tables import body, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "benchmark" / "results_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """Three seeds of iCaRL, two of LUCIR (the first of them iCaRL's too), one LUCIR run of another length."""
    (tmp_path / "cifar100_cpu").mkdir()
    made = [run(seed, 40.0 + seed, 10.0 + 2 * seed, **ICARL) for seed in (1, 2, 3)]
    made += [run(seed, 50.0 + seed**2, **LUCIR) for seed in (3, 4)] + [run(3, 70.0, **LUCIR | {"epochs": 24})]
    for i, results in enumerate(made):
        results["environment"] = {"device": "cpu", "threads": 1, "cpu_count": 2, "torch": "2", "commit": "0123456789ab"}
        write(tmp_path, i, results)
    return tmp_path


PLAIN = {"exemplars": "herding", "weight_transfer": False, "finetune_epochs": 0, "epochs": 12}
ICARL, LUCIR = {"baseline": "icarl", **PLAIN}, {"baseline": "lucir", **PLAIN}


def write(folder, name, results):
    (folder / "cifar100_cpu" / f"{name}.json").write_text(json.dumps(results))


def filled_in(script, folder, template):
    (folder / "README.md.j2").write_text(template)
    return script.page(folder)


def test_the_committed_page_is_what_the_committed_results_give(script):
    assert script.page(ROOT / "results") == (ROOT / "results" / "README.md").read_text(encoding="utf-8")


def test_a_table_of_phases_has_means_intervals_and_the_papers_number(script, folder):
    text = filled_in(
        script, folder, '{{ phases([("A", {"baseline": "icarl"}), ("B", {"baseline": "lucir"})], epochs=12) }}'
    )
    t_two, t_one = 4.30265, 12.7062  # 97.5% points of Student's t with 2 and 1 degrees of freedom
    a, b = body(text)
    assert a[:3] == ["A", "42.00", "41.00"]  # the run of seed s has s + 40 - phase
    assert a[7] == f"42.00 +- {t_two / math.sqrt(3):.2f}"
    assert a[8:] == [f"14.00 +- {2 * t_two / math.sqrt(3):.2f}", "3", "57.12"]
    spread = 7 / math.sqrt(2)  # standard deviation of 59 and 66
    assert b[7] == f"62.50 +- {t_one * spread / math.sqrt(2):.2f}"
    assert b[8:] == ["20.00 +- 0.00", "2", "63.17"]


def test_icarls_network_output_stands_beside_the_papers_lwf(script, folder):
    text = filled_in(script, folder, '{{ phases([("A", {"classifier": "cnn"})], baseline="icarl") }}')
    assert body(text)[0][1:8] == ["1.00"] * 6 + ["1.00 +- 0.00"]
    assert body(text)[0][-1] == "49.59"
    text = filled_in(script, folder, '{{ phases([("A", {"classifier": "nme"})], baseline="lucir", epochs=12) }}')
    assert body(text)[0][-1] == "-"  # the paper has none by nearest means


def test_gains_compare_runs_of_the_same_seed_alone(script, folder):
    template = '{{ gains([("A", [{"baseline": "lucir"}], [{"baseline": "icarl"}])], epochs=12) }}'
    assert body(filled_in(script, folder, template))[0] == ["A", "+16.00", "+4.00", "+0.00", "1"]  # 59 - 43, 20 - 16


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ('average(baseline="bic")', "no finished run"),
        ('average(baseline="lucir")', "several runs"),  # 12 and 24 epochs
        ('average(basline="lucir")', "no setting of a run is called basline"),
        ('number("none.json", "a")', "none.json"),
        ("averag()", "averag"),
    ],
)
def test_a_call_that_means_nothing_is_refused(script, folder, call, reason):
    with pytest.raises((ValueError, OSError), match=reason):
        filled_in(script, folder, f"{{{{ {call} }}}}")


def test_numbers_of_other_files_are_found_by_their_keys(script, folder):
    (folder / "some.json").write_text('{"rows": [{"x": 1.5}, {"x": 2.25}]}')
    assert filled_in(script, folder, '{{ "%.1f" | format(number("some.json", "rows.1.x")) }}') == "2.2"


def test_unfinished_runs_are_not_counted(script, folder):
    write(folder, "unfinished", run(5, 0.0, finished=3, **ICARL))
    assert filled_in(script, folder, '{{ average(baseline="icarl") }}').startswith("42.00 +- ")
