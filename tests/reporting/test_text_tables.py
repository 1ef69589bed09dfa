"""The tables, on results made by hand."""

from mnemonics.reporting.text import AVERAGE, FORGETTING, OF_SEVERAL, comparison_table, render_table, results_table


def test_one_renderer_writes_text_markdown_and_csv():
    rows = [["a", "long"], ["wide cell", "1"], ["", "22"]]
    assert render_table(rows) == "        a  long\nwide cell     1\n             22"
    assert render_table(rows, left=1) == "a          long\nwide cell     1\n             22"
    markdown = "| a         | long |\n| --------- | ---- |\n| wide cell | 1    |\n|           | 22   |"
    assert render_table(rows, "markdown") == markdown
    assert render_table([["a", "b"], [None, 'x,"y"']], "csv") == 'a,b\n,"x,""y"""\n'


def test_results_table_is_exactly_this(results):
    assert results_table(results).split("\n") == [
        "digits, icarl with mnemonics exemplars, training seed 7, class order seed 1993",
        "",
        "phase  classes  train images  exemplars/class  CNN %  NME* %  CNN before %  NME* before %"
        "  phase-0 classes NME* %  seconds",
        "    0        5       718 + 0               20  98.12   97.20             -              -"
        "                   97.20      4.2",
        "    1       10     719 + 100            18-20  81.50   85.30         61.70          64.90"
        "                   90.90     33.2",
        "",
        "                      CNN   NME*",
        "average accuracy %  89.81  91.25",
        "last accuracy %     81.50  85.30",
        "forgetting, points  27.03   6.30",
        "",
        "train images = images of the new classes + of old ones (exemplars, unless the baseline is a bound)",
        "exemplar budget: 20 per class (--nb_protos)",
        AVERAGE.format(phases="all 2"),
        FORGETTING,
        'after fine-tuning on the exemplars; "before" = before it; n runs = 1; * = headline classifier',
    ]


def test_results_table_without_finetuning_with_total_memory_and_phases_missing(other):
    lines = results_table(other).split("\n")
    assert lines[2].split("  ")[-2:] == ["phase-0 classes CNN* %", "seconds"]
    assert lines[3].split() == ["0", "5", "718", "+", "0", "20", "98.12", "97.20", "98.12", "4.2"]
    assert "before" not in "\n".join(lines)
    assert "exemplar budget: 2000 in total (--total_memory)" in lines
    assert AVERAGE.format(phases="1 of 3") in lines
    assert lines[-1] == "without fine-tuning on the exemplars; n runs = 1; * = headline classifier"


def test_results_table_shows_the_upper_bound_where_it_was_measured(results):
    assert "NCM" not in results_table(results)
    for phase, value in zip(results["phases"], (99.25, 95.75), strict=True):
        phase["accuracy"]["ncm"] = value
    results["summary"]["average_accuracy"]["ncm"] = 97.5
    lines = results_table(results).split("\n")
    assert "99.25" in lines[3]
    assert "95.75" in lines[4]
    assert lines[7].endswith(" 97.50")
    assert lines[-1] == "NCM reads all training data, which a learner would no longer have: an upper bound"


def test_comparison_table_is_exactly_this(results, other):
    assert comparison_table([("mine", results), ("lwf", other)]).split("\n") == [
        "run                  exemplars      classifier  phase 0  phase 1  average  forgetting",
        "mine                 20 per class   NME           97.20    85.30    91.25        6.30",
        "lwf (1 of 3 phases)  2000 in total  CNN           98.12             98.12        0.00",
        "",
        *OF_SEVERAL,
        "the runs differ in baseline: icarl | lwf",
        "the runs differ in exemplars: mnemonics | herding",
        "the runs differ in nb_phases: 1 | 2",
        "the runs differ in nb_protos: 20 | not given",
        "the runs differ in total_memory: not given | 2000",
        "the runs differ in finetune_epochs: 50 | 0",  # and not in --out, which changes no number
    ]
