import xml.etree.ElementTree as ET
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import planner
from planner.cli import main
from planner.picture.memory_picture import kind_of, memory_picture
from planner.picture.png import png
from planner.picture.shapes import Rect, Text
from planner.picture.svg import svg

QLORA = planner.estimate("7b", "t4", method="qlora")
FULL = planner.plan("mistral-7b", "v100-16gb", method="full")
SVG = "{http://www.w3.org/2000/svg}"


def bars(picture):
    return [shape for shape in picture.shapes if isinstance(shape, Rect) and shape.title]


@pytest.mark.parametrize("answer", [QLORA, FULL], ids=["fits", "does not fit"])
@pytest.mark.parametrize("width", [320, 720])
def test_all_that_is_drawn_is_on_the_paper(answer, width):
    picture = memory_picture(answer.estimate, answer.usable_bytes, width)
    for shape in picture.shapes:
        if isinstance(shape, Rect):
            assert shape.x >= 0
            assert shape.x + shape.width <= picture.width
            assert shape.y + shape.height <= picture.height
        if isinstance(shape, Text):
            assert 0 <= shape.x <= picture.width


@settings(max_examples=20, deadline=None)
@given(st.integers(300, 1200), st.sampled_from([QLORA, FULL]))
def test_bars_are_as_long_as_what_they_stand_for(width, answer):
    by_row = {}
    for bar in bars(memory_picture(answer.estimate, answer.usable_bytes, width)):
        by_row[bar.y] = by_row.get(bar.y, 0) + bar.width
    totals = [*answer.estimate.phases.values(), answer.estimate.process_bytes]
    drawn, largest = sorted(by_row.values()), max(by_row.values())
    expected = [total / max(totals) * largest for total in sorted(totals)]
    assert drawn == pytest.approx(expected, rel=1e-6)


def test_the_svg_is_xml_and_says_in_words_what_it_shows():
    root = ET.fromstring(svg(QLORA.picture))  # noqa: S314
    assert root.get("role") == "img"
    assert "backward" in root.get("aria-label")
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert "14.6 GiB usable" in words
    assert "quantized weights: 3.1 GiB" in [element.text for element in root.iter(f"{SVG}title")]


def test_the_png_has_twice_the_pixels():
    image = Image.open(BytesIO(png(QLORA.picture)))
    assert image.size == (2 * QLORA.picture.width, 2 * QLORA.picture.height)
    assert len(image.getcolors(1 << 16)) > 10


def test_components_have_the_color_of_their_kind():
    assert {name: kind_of(name) for name in ("quantized weights", "earlier gradients", "layer at work", "batch")} == {
        "quantized weights": "weights",
        "earlier gradients": "gradients",
        "layer at work": "work",
        "batch": "other",
    }


@pytest.mark.parametrize("answer", [QLORA, FULL], ids=["estimate", "plan"])
def test_a_notebook_shows_an_answer_as_a_picture(answer):
    html = answer._repr_html_()
    assert html.startswith("<figure")
    assert f"{answer.verdict}: " in html
    assert ET.fromstring(html).find(f"{SVG}svg") is not None  # noqa: S314


@pytest.mark.parametrize("argv", [["plan", "7b", "--gpu", "t4"], ["estimate", "7b", "--gpu", "t4"]], ids=lambda a: a[0])
@pytest.mark.parametrize(("name", "start"), [("memory.svg", b"<svg"), ("memory.PNG", b"\x89PNG")])
def test_plot_writes_a_picture(argv, name, start, tmp_path, capsys):
    assert main([*argv, "--plot", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_a_plotted_picture_says_what_it_shows_without_moving_anything_else(tmp_path, capsys):
    assert main(["estimate", "7b", "--gpu", "t4", "--method", "qlora", "--plot", str(tmp_path / "memory.svg")]) == 0
    drawn = ET.fromstring((tmp_path / "memory.svg").read_text())  # noqa: S314
    words = [text.text for text in drawn.iter(f"{SVG}text")]
    assert QLORA.caption in words
    assert words[1:] == [shape.words for shape in QLORA.picture.shapes if isinstance(shape, Text)]


def test_plot_refuses_other_formats_and_folders_that_are_not_there(tmp_path, capsys):
    assert main(["plan", "7b", "--gpu", "t4", "--plot", "memory.jpeg"]) == 2
    assert "drawn as .svg or .png" in capsys.readouterr().err
    assert main(["plan", "7b", "--gpu", "t4", "--plot", str(tmp_path / "no" / "memory.svg")]) == 2
    assert "cannot be written: No such file" in capsys.readouterr().err
