"""Markdown for the Kubeflow UI: users' values are escaped."""

import pytest

from reporting import markdown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("adamW", "adamW"),
        (3, "3"),
        ("+3.0 % [2.0, 4.0]", "+3.0 % [2.0, 4.0]"),
        ("[a](b)", "`[a](b)`"),
        ("two\nlines", "two lines"),
        ("a|b", "a¦b"),
        ("<br>", "‹br>"),
        ("train/*.root", "`train/*.root`"),
        ("smooth_l1", "`smooth_l1`"),
        ("http://pfn.physics.svc", "`http://pfn.physics.svc`"),
        ("a `b`", "`a 'b'`"),
        ("a/jec-b@sha256:" + 35 * "0", f"`a/jec-b@sha256:{27 * '0'}` `{8 * '0'}`"),
    ],
)
def test_a_value_is_escaped_so_that_it_is_shown_as_it_is(value, expected):
    assert (markdown.code if "sha256" in str(value) else markdown.text)(value) == expected


def test_a_block_is_no_wider_than_the_panel_and_does_not_end_early():
    reason = "5 of 5 trials failed\n  | Traceback <module> ``` " + "word " * 40
    fence, *lines, end = markdown.block(reason).splitlines()
    assert (fence, end) == ("```", "```")
    assert max(map(len, lines)) <= markdown.WIDTH
    assert "<" not in " ".join(lines)
    assert "`" not in " ".join(lines)
    words = " ".join(lines).split()
    assert words == reason.replace("<", "‹").replace("```", "'''").split()


def test_rows_of_a_table_have_as_many_cells_as_its_head():
    text = markdown.table(["name", "value"], [("k", markdown.code("a|b")), ("l", "–")])
    head, _, *rows = text.splitlines()
    assert rows == ["| k | `a¦b` |", "| l | – |"]
    assert {line.count("|") for line in (head, *rows)} == {3}
