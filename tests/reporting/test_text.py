"""The tables of one run and of several (mnemonics/reporting/text.py), on results made by hand."""

import pytest
from reports import make_results

from mnemonics.reporting.text import AVERAGE, FORGETTING, OF_SEVERAL, comparison_table, render_table, results_table


@pytest.fixture
def results():
    """Two phases of iCaRL with numbers that occur only once, so that a number in the wrong place cannot pass."""
    results = make_results(7, 91.25, 6.3, 85.3, dataset="digits", baseline="icarl", nb_phases=1)
    first, last = results["phases"]
    first |= {"train_images": {"new": 718, "old": 0}, "accuracy": {"cnn": 98.125, "nme": 97.2}}
    last |= {"train_images": {"new": 719, "old": 100}, "exemplars_per_class": {"min": 18, "max": 20}}
    last["accuracy"] = {"cnn": 81.5, "nme": 85.3, "cnn_before_finetune": 61.7, "nme_before_finetune": 64.9}
    last["seconds"] |= {"finetune": 31.0}
    for metric, value in (("average_accuracy", 89.81), ("last_accuracy", 81.51), ("forgetting", 27.03)):
        results["summary"][metric]["cnn"] = value
    return results


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
        "                   91.25      2.2",
        "    1       10     719 + 100            18-20  81.50   85.30         61.70          64.90"
        "                   89.25     33.2",
        "",
        "                      CNN   NME*",
        "average accuracy %  89.81  91.25",
        "last accuracy %     81.51  85.30",
        "forgetting, points  27.03   6.30",
        "",
        "train images = images of the new classes + of old ones (exemplars, unless the baseline is a bound)",
        "exemplar budget: 20 per class (--nb_protos)",
        AVERAGE.format(phases="all 2"),
        FORGETTING,
        'after fine-tuning on the exemplars; "before" = before it; n runs = 1; * = headline classifier',
    ]


def test_results_table_without_finetuning_with_total_memory_and_an_upper_bound_and_phases_missing():
    unfinished = make_results(finished=1, baseline="lwf", finetune_epochs=0, total_memory=2000)
    for values in (unfinished["phases"][0]["accuracy"], *unfinished["summary"].values()):
        values["ncm"] = 99.25
    lines = results_table(unfinished).split("\n")
    assert lines[2].endswith("exemplars/class  CNN* %  NME %  NCM %  phase-0 classes CNN* %  seconds")
    assert lines[3].split()[-5:] == ["60.00", "1.00", "99.25", "60.00", "2.2"]
    assert [line.split()[-1] for line in lines[6:9]] == ["99.25"] * 3
    assert lines[11:] == [
        "exemplar budget: 2000 in total (--total_memory)",
        AVERAGE.format(phases="1 of 6"),
        FORGETTING,
        "without fine-tuning on the exemplars; n runs = 1; * = headline classifier",
        "NCM reads all training data, which a learner would no longer have: an upper bound",
    ]


def test_comparison_table_is_exactly_this(results):
    same = {"dataset": "digits", "nb_phases": 2, "out": "there"}  # where it is, changes no number
    other = make_results(7, finished=1, baseline="lwf", total_memory=2000, **same)
    assert comparison_table([("mine", results), ("lwf", other)]).split("\n") == [
        "run                  exemplars      classifier  phase 0  phase 1  average  forgetting",
        "mine                 20 per class   NME           97.20    85.30    91.25        6.30",
        "lwf (1 of 3 phases)  2000 in total  CNN           60.00             60.00       20.00",
        "",
        *OF_SEVERAL,
        "the runs differ in nb_phases: 1 | 2",
        "the runs differ in baseline: icarl | lwf",
        "the runs differ in nb_protos: 20 | not given",
        "the runs differ in total_memory: not given | 2000",
    ]
