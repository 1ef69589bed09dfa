"""The tables of results/README.md (scripts/benchmark/results_page.py)."""

import math

import pytest
from reports import PLAIN, ROOT, body, make_results, written

from mnemonics.engine.errors import UsageError
from scripts.benchmark import results_page


@pytest.fixture
def filled_in(tmp_path):
    """The rows of a table, from three seeds of iCaRL and two of LUCIR, of which one is iCaRL's too."""
    for name, seeds, average in (("icarl", (1, 2, 3), 40.0), ("lucir", (3, 4), 50.0)):
        for seed in seeds:
            ending = f"_seed{seed}" * (seed > seeds[0])
            results = make_results(seed, average + seed**2, 10.0 + 2 * seed, baseline=name, **PLAIN)
            written(tmp_path / "runs" / f"{name}{ending}.json", results)
    return lambda kind, rows: body(
        results_page.page(f"before\n<!-- {kind} in runs\n{rows}\n-->\n\n<!-- end -->\nafter\n", tmp_path)
    )


def test_the_committed_tables_are_what_the_committed_results_give():
    texts = [path.read_text(encoding="utf-8") for path in results_page.PAGES]
    assert [text.count("\n<!-- end -->\n") for text in texts] == [2, 14]
    assert [results_page.page(text, ROOT / "results") for text in texts] == texts


def test_a_table_of_phases_has_means_intervals_and_the_papers_number(filled_in):
    a, b, c, d = filled_in("phases", "A = lucir cnn\nB = icarl nme\nC = icarl cnn\nD = lucir nme")
    # of 59 and 66; Student's t with 1 and 2 degrees of freedom is 12.7062 and 4.30265
    assert a == [
        "A",
        *(f"{62.5 - i:.2f}" for i in range(6)),
        f"62.50 +- {12.7062 * 3.5:.2f}",
        "17.00 +- 12.71",
        "2",
        "63.17",
    ]
    assert b[8:] == [f"14.00 +- {2 * 4.30265 / math.sqrt(3):.2f}", "3", "57.12"]
    assert c[7:] == ["1.00 +- 0.00", "1.00 +- 0.00", "3", "49.59"]  # the network output of iCaRL is LwF
    assert d[-1] == "-"  # the paper has none by nearest means


def test_gains_are_those_of_the_same_seeds(filled_in):
    assert filled_in("gains", "A = lucir icarl cnn") == [
        ["A", "+58.00", "+15.00", "+49.00", "1"]
    ]  # 59 - 1, 16 - 1, 50 - 1


def test_a_number_is_reproduced_within_a_point(filled_in):
    assert filled_in("reported", "A = lucir cnn\nB = icarl nme") == [
        ["A", "63.17", f"62.50 +- {12.7062 * 3.5:.2f}", "-0.67", "2", "0.0", "yes"],
        ["B", "57.12", "44.67 +- 10.04", "-12.45", "3", "0.0", "no"],
    ]


def test_costs_are_of_the_last_phase_and_of_the_phases_after_the_first(filled_in):
    # 1,024 bytes of 100 classes; five phases of 25,000 images, 160 epochs
    assert filled_in("costs", "A = lucir cnn") == [
        ["A", "10", "20", "20,000,000", "2", f"62.50 +- {12.7062 * 3.5:.2f}", "17.00 +- 12.71", "2"]
    ]


def test_the_figure_has_a_line_for_each_title_in_the_order_of_bytes(tmp_path):
    for name, size, average in (("a", 4, 50.0), ("b", 2, 40.0), ("c", 3, 45.0)):
        results = make_results(average=average, baseline="lucir", **PLAIN)
        results["phases"][-1]["exemplar_bytes"] = 100 * size
        written(tmp_path / "runs" / f"{name}.json", results)
    rows = "raw; large = a cnn\nraw; small = b cnn\ncoded; 3 bytes = c cnn"
    (axes,) = results_page.bytes_figure(f"<!-- costs in runs\n{rows}\n-->\n\n<!-- end -->\n", tmp_path).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        "raw": [[2.0, 40.0], [4.0, 50.0]],
        "coded": [[3.0, 45.0]],
    }


@pytest.mark.parametrize("row", ["A = bic cnn", "A = lucir ncm", "A lucir cnn"])
def test_a_row_that_means_nothing_is_refused(filled_in, row):
    with pytest.raises(UsageError, match=f"{row}: KeyError|{row}: ValueError|bic.json/results.json: cannot be read"):
        filled_in("phases", row)
