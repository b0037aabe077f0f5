import io

from rich.console import Console

from planner.data.report import Piece, PreviewRow
from planner.report.data_preview import SHOWN_TOKENS, print_preview

READ, LEARNED = Piece(id=1, text="Hi\n", learned=False), Piece(id=2, text="you", learned=True)


def printed(*sequences, **console):
    stream = io.StringIO()
    print_preview(
        Console(file=stream, width=80, highlight=False, markup=False, **console),
        [PreviewRow(place="line 1", sequences=sequences)],
    )
    return stream.getvalue()


def test_without_colours_marks_say_what_is_learned():
    assert printed((READ, READ, LEARNED, LEARNED, READ)).endswith("\nHi\u21b5\n|Hi\u21b5\n[[you|you]]Hi\u21b5\n")


def test_with_colours_the_text_is_exact_and_neighbours_differ():
    shown = printed((READ, LEARNED, LEARNED), force_terminal=True, color_system="truecolor")
    assert "[[" not in shown
    plain = printed((READ, LEARNED, LEARNED), force_terminal=True, color_system="truecolor", no_color=True)
    assert plain.endswith("[[you|you]]\n")
    assert shown.count("\x1b[30;42myou") == shown.count("\x1b[30;102myou") == 1


def test_of_a_pair_both_answers_are_shown():
    shown = printed((READ, LEARNED), (READ,))
    assert "line 1, chosen: 2 tokens, 1 count in the loss\n" in shown
    assert "line 1, rejected: 1 tokens, 0 count in the loss\n" in shown


def test_a_long_row_is_cut_on_the_screen():
    assert "... 5 more tokens with --json\n" in printed((LEARNED,) * (SHOWN_TOKENS + 5))
