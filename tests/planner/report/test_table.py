import io

import pytest
from rich.console import Console

from planner.report.table import Column, fitting_columns, print_table

COLUMNS = (Column("name"), Column("bytes", rank=1, justify="right"), Column("remark", rank=2))
ROWS = [["a100", "12345", "a long remark"], ["t4", "6", "none"]]


def printed(width: int, rows: list[list[str]]) -> list[str]:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_table(console, COLUMNS, rows)
    return console.file.getvalue().splitlines()


def test_a_wide_console_shows_every_column():
    assert printed(80, ROWS) == [
        "  name  bytes  remark",
        "  a100  12345  a long remark",
        "  t4        6  none",
    ]


@pytest.mark.parametrize(("width", "kept"), [(80, [0, 1, 2]), (28, [0, 1, 2]), (27, [0, 1]), (13, [0, 1]), (12, [0])])
def test_the_column_of_highest_rank_goes_first(width, kept):
    assert fitting_columns(COLUMNS, ROWS, width) == kept


def test_columns_of_rank_zero_always_stay():
    assert fitting_columns(COLUMNS, ROWS, 1) == [0]


def test_a_column_that_is_empty_everywhere_is_not_shown():
    assert printed(80, [["a100", "", "x"]]) == ["  name  remark", "  a100  x"]


@pytest.mark.parametrize("width", range(8, 60))
def test_no_line_is_wider_than_the_console(width):
    assert all(len(line) <= width for line in printed(width, ROWS))
