"""The class order, the split into phases and the label mapping."""

import hashlib
import re

import numpy as np
import pytest

from mnemonics.engine.errors import UsageError
from mnemonics.protocol import class_order, make_protocol, phase_sizes, read_order


def test_order_of_seed_1993_is_the_published_one():
    assert class_order(100, 1993)[:10] == (68, 56, 78, 8, 23, 84, 90, 65, 74, 76)
    assert sorted(class_order(100, 1993)) == list(range(100))
    assert class_order(100, 1) != class_order(100, 1993)


def test_later_runs_go_on_with_the_generator():
    np.random.seed(1993)
    for run in range(3):
        expected = np.arange(100)
        np.random.shuffle(expected)
        assert class_order(100, 1993, run) == tuple(expected)


@pytest.mark.parametrize("lines", ["bee\ncaf\u00e9\nape\n", "\n bee \r\ncafe\u0301\nape", "1\n2\n0\n"])
def test_an_order_of_names_or_ids(tmp_path, lines):
    (tmp_path / "order.txt").write_text(lines, encoding="utf-8", newline="")
    assert read_order(str(tmp_path / "order.txt"), ("ape", "bee", "caf\u00e9")) == (1, 2, 0)


def test_names_may_begin_and_end_with_spaces(tmp_path):
    (tmp_path / "order.txt").write_text(" bee\nape \n")
    assert read_order(str(tmp_path / "order.txt"), (" bee", "ape")) == (0, 1)


def test_names_that_are_numbers_are_names(tmp_path):
    (tmp_path / "order.txt").write_text("2\n1\n10\n")
    assert read_order(str(tmp_path / "order.txt"), ("1", "10", "2")) == (2, 0, 1)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("ape\nbee\n", "'cow' is missing; each of the 3 classes needs one line"),
        ("ape\nbee\ncow\nbee\n", "a class is in two lines"),
        ("ape\nbe\ncow\n", "'be' is no class; 'ape' would be one"),
        ("0\n1\n3\n", "'0' is no class"),
        ("", "'ape' is missing"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_an_order_that_cannot_be_used(tmp_path, lines, words):
    if lines is not None:
        (tmp_path / "order.txt").write_text(lines)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_order(str(tmp_path / "order.txt"), ("ape", "bee", "cow"))


def test_order_leaves_the_global_generator_alone():
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    class_order(100, 1993)
    assert np.random.rand() == expected


def test_labels_are_positions_in_the_order():
    protocol = make_protocol(class_order(100, 1993), [50, *[10] * 5])
    assert protocol.labels_of(np.array([68, 56, 78])).tolist() == [0, 1, 2]
    assert protocol.labels_of(np.array(protocol.order)).tolist() == list(range(100))


def test_phases_cover_all_classes_once():
    protocol = make_protocol(class_order(100, 1993), [50, *[10] * 5])
    assert [len(p.class_ids) for p in protocol.phases] == [50, 10, 10, 10, 10, 10]
    assert [p.seen for p in protocol.phases] == [50, 60, 70, 80, 90, 100]
    assert sum((p.class_ids for p in protocol.phases), ()) == protocol.order
    assert [list(p.new_labels) for p in protocol.phases[1:2]] == [list(range(50, 60))]
    assert np.bincount(protocol.phase_of_label()).tolist() == [50, 10, 10, 10, 10, 10]


def test_order_hash_is_of_the_decimal_list():
    protocol = make_protocol(class_order(4, 1993), [2, 1, 1])
    text = ",".join(str(c) for c in protocol.order)
    assert protocol.order_sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((100, None, None, None), (50, *[10] * 5)),
        ((100, 25, None, None), (50, *[2] * 25)),
        ((100, None, 50, 2), (50, *[2] * 25)),
        ((100, 6, 40, "10"), (40, *[10] * 6)),
        ((10, 3, 4, None), (4, 2, 2, 2)),
        ((11, 6, None, None), (5, *[1] * 6)),
        ((40, None, None, "7,5,5,3"), (20, 7, 5, 5, 3)),
        ((10, 2, 3, "3,4"), (3, 3, 4)),
    ],
)
def test_the_spellings_agree(arguments, expected):
    assert phase_sizes(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((14, 5, None, None), ["--nb_phases 5", "7 classes left", "1, 7 would"]),
        ((100, 5, 50, 2), ["--nb_phases 5", "--nb_cl 2", "contradicts"]),
        ((100, None, 50, 7), ["--nb_cl 7", "50 classes left", "1, 2, 5, 10, 25, 50 would"]),
        ((100, None, 100, None), ["--nb_cl_fg 100", "1 to 99"]),
        ((40, None, None, "7,5"), ["--nb_cl 7,5", "12 classes, but 20 are left"]),
        ((10, 3, None, "3,2"), ["--nb_phases 3 contradicts --nb_cl 3,2"]),
        *(((10, None, None, text), [f"--nb_cl {text}: must be"]) for text in ("0", "3,0,2", "x", "3,", "-1", "2.0")),
    ],
)
def test_contradictions_are_refused_with_what_would_work(arguments, words):
    with pytest.raises(UsageError) as error:
        phase_sizes(*arguments)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
