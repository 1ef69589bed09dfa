"""The tables of results/README.md (scripts/benchmark/results_page.py)."""

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


# averages of 59 and 66, of 41, 44 and 49; Student's t with 1 and 2 degrees of freedom is 12.7062 and 4.30265
TABLES = {
    "phases": [
        ("lucir cnn", "62.50, 61.50, 60.50, 59.50, 58.50, 57.50, 62.50 +- 44.47, 17.00 +- 12.71, 2, 63.17"),
        ("icarl nme", "44.67, 43.67, 42.67, 41.67, 40.67, 39.67, 44.67 +- 10.04, 14.00 +- 4.97, 3, 57.12"),
        ("icarl cnn", "1.00, " * 6 + "1.00 +- 0.00, 1.00 +- 0.00, 3, 49.59"),  # the network output of iCaRL is LwF
        ("lucir nme", "1.00, " * 6 + "1.00 +- 0.00, 1.00 +- 0.00, 2, -"),  # the paper has none by nearest means
    ],
    "gains": [("lucir icarl cnn", "+58.00, +15.00, +49.00, 1")],  # of the same seeds: 59 - 1, 16 - 1, 50 - 1
    "reported": [  # reproduced if within a point
        ("lucir cnn", "63.17, 62.50 +- 44.47, -0.67, 2, 0.0, yes"),
        ("icarl nme", "57.12, 44.67 +- 10.04, -12.45, 3, 0.0, no"),
    ],
    # 1,024 bytes of 100 classes in the last phase; five phases after the first of 25,000 images, 160 epochs
    "costs": [("lucir cnn", "10, 20, 20,000,000, 2, 62.50 +- 44.47, 17.00 +- 12.71, 2")],
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables(filled_in, kind):
    rows, cells = zip(*TABLES[kind], strict=True)
    found = filled_in(kind, "\n".join(f"A = {row}" for row in rows))
    assert found == [["A", *expected.split(", ")] for expected in cells]


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
