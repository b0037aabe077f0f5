import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.picture.curve_picture import Curve, binary_step, curve_picture, round_step
from planner.picture.shapes import Line, Rect, Text
from planner.picture.svg import svg

numbers = st.floats(0, 1e12, allow_subnormal=False).map(lambda number: round(number, 6))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), st.integers(300, 900), st.booleans())
def test_all_that_is_drawn_is_on_the_paper(points, width, dashed):
    picture = curve_picture([Curve("one", sorted(points), "work", dashed)], "step", lambda y: f"{y:.3g}", width=width)
    for shape in picture.shapes:
        if isinstance(shape, Line):
            assert all(-0.01 <= x <= width + 0.01 for x in (shape.x1, shape.x2))
            assert all(-0.01 <= y <= picture.height for y in (shape.y1, shape.y2))


def test_a_higher_value_is_drawn_higher():
    picture = curve_picture([Curve("loss", [(0, 4), (1, 3), (2, 1)], "work")], "step", str)
    strokes = [shape for shape in picture.shapes if isinstance(shape, Line) and shape.ink == "work"]
    ys = [strokes[0].y1, *(stroke.y2 for stroke in strokes)]
    assert ys == sorted(ys)
    base = max(shape.y1 for shape in picture.shapes if isinstance(shape, Line) and shape.ink == "line")
    heights = [base - y for y in ys]
    assert heights[0] / heights[2] == pytest.approx(4)
    assert heights[1] / heights[2] == pytest.approx(3)


def test_names_that_do_not_fit_one_line_take_another():
    curves = [Curve(f"a rather long name, number {n}", [(0, n), (1, n)], "work") for n in range(4)]
    picture = curve_picture(curves, "step", str, width=400)
    names = [shape for shape in picture.shapes if isinstance(shape, Text) and "number" in shape.words]
    assert len({name.y for name in names}) > 1
    assert max(name.y for name in names) < picture.height


def test_the_picture_says_in_words_how_the_curves_end():
    picture = curve_picture([Curve("peak", [(1, 2.0), (9, 8.0)], "work")], "step", lambda y: f"{y:.0f} GiB")
    root = ET.fromstring(svg(picture))  # noqa: S314
    assert root.get("aria-label") == "Over step from 1 to 9, at the end: peak 8 GiB."


def test_a_single_point_is_a_mark():
    picture = curve_picture([Curve("loss", [(3, 2.0)], "work")], "step", str)
    assert any(isinstance(shape, Rect) and shape.width == shape.height for shape in picture.shapes)


@pytest.mark.parametrize(("about", "step"), [(0.03, 0.05), (1, 1), (1.2, 2), (37, 50), (60, 100)])
def test_steps_are_round(about, step):
    assert round_step(about) == pytest.approx(step)


def test_steps_of_bytes_are_powers_of_two():
    assert binary_step(3 << 30) == 4 << 30
