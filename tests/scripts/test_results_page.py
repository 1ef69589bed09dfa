"""results/README.md from its template and the committed results (scripts/benchmark/results_page.py)."""

import math

import pytest
from reports import PLAIN, ROOT, body, make_results, script, written

from mnemonics.engine.errors import UsageError

results_page = script("benchmark/results_page")
SETTINGS = PLAIN | {"epochs": 12}
ICARL, LUCIR = {"baseline": "icarl", **SETTINGS}, {"baseline": "lucir", **SETTINGS}


@pytest.fixture
def filled_in(tmp_path):
    """The page of a template, and: three seeds of iCaRL, two of LUCIR (the first of them iCaRL's too), one LUCIR run of
    another length, one of iCaRL that is not finished."""
    made = [make_results(seed, 40.0 + seed, 10.0 + 2 * seed, **ICARL) for seed in (1, 2, 3)]
    made += [make_results(seed, 50.0 + seed**2, **LUCIR) for seed in (3, 4)]
    made += [make_results(3, 70.0, **LUCIR | {"epochs": 24}), make_results(5, 0.0, finished=3, **ICARL)]
    for i, results in enumerate(made):
        written(tmp_path / "cifar100_cpu" / f"{i}.json", results)
    written(tmp_path / "some.json", {"rows": [{"x": 1.5}, {"x": 2.25}]})
    return lambda template: (written(tmp_path / "README.md.j2", template), results_page.page(tmp_path))[1]


def test_the_committed_page_is_what_the_committed_results_give():
    assert results_page.page(ROOT / "results") == (ROOT / "results" / "README.md").read_text(encoding="utf-8")


def test_a_table_of_phases_has_means_intervals_and_the_papers_number(filled_in):
    a, b = body(filled_in('{{ phases([("A", {"baseline": "icarl"}), ("B", {"baseline": "lucir"})], epochs=12) }}'))
    t_two, t_one = 4.30265, 12.7062  # 97.5% points of Student's t with 2 and 1 degrees of freedom
    assert a[:3] == ["A", "42.00", "41.00"]  # the run of seed s has s + 40 - phase
    assert a[7] == f"42.00 +- {t_two / math.sqrt(3):.2f}"
    assert a[8:] == [f"14.00 +- {2 * t_two / math.sqrt(3):.2f}", "3", "57.12"]
    assert b[7] == f"62.50 +- {t_one * 3.5:.2f}"  # of 59 and 66
    assert b[8:] == ["20.00 +- 0.00", "2", "63.17"]


def test_icarls_network_output_stands_beside_the_papers_lwf(filled_in):
    row = body(filled_in('{{ phases([("A", {"classifier": "cnn"})], baseline="icarl") }}'))[0]
    assert row[1:8] + row[-1:] == ["1.00"] * 6 + ["1.00 +- 0.00", "49.59"]
    row = body(filled_in('{{ phases([("A", {"classifier": "nme"})], baseline="lucir", epochs=12) }}'))[0]
    assert row[-1] == "-"  # the paper has none by nearest means


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ('gains([("A", [{"baseline": "lucir"}], [{"baseline": "icarl"}])], epochs=12).splitlines() | last | trim("| ")',
         "A | +16.00           | +4.00      | +0.00         | 1"),  # of the same seed alone: 59 - 43, 20 - 16
        ('average(baseline="icarl")', "42.00 +- 2.48"),
        ('"%.1f" | format(number("some.json", "rows.1.x"))', "2.2"),
        ('provenance(baseline="lucir")', "3 runs; cpu, 1 of 2 cores, torch 2; commits 0123456789"),
    ],
)  # fmt: skip
def test_what_else_a_template_can_call(filled_in, call, value):
    assert filled_in(f"{{{{ {call} }}}}").rstrip("| ") == value


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ('average(baseline="bic")', "no finished run"),
        ('average(baseline="lucir")', "several runs"),  # 12 and 24 epochs
        ('average(basline="lucir")', "no setting of a run is called basline"),
        ('number("none.json", "a")', r"none\.json"),
        ('number("some.json", "rows.x")', "ValueError"),
        ("averag()", "averag"),
    ],
)
def test_a_call_that_means_nothing_is_refused(filled_in, call, reason):
    with pytest.raises(UsageError, match=reason):
        filled_in(f"{{{{ {call} }}}}")
