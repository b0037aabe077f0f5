import pytest
from matplotlib import rc_context

from calibration.truth.error_picture import draw
from profiles.errors import DataError
from tests.calibration.truth.test_error_table import ALLOCATED, BOTH, FAILED


@pytest.mark.parametrize(("name", "begins"), [("errors.svg", b"<?xml"), ("errors.png", b"\x89PNG")])
def test_the_picture_has_the_format_that_its_name_says(tmp_path, name, begins):
    draw([BOTH, ALLOCATED, FAILED], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_the_picture_says_how_many_runs_it_shows(tmp_path):
    with rc_context({"svg.fonttype": "none"}):
        draw([BOTH, ALLOCATED, FAILED], tmp_path / "errors.svg")
    drawn = (tmp_path / "errors.svg").read_text("utf-8")
    assert ">allocated, one GPU (2)<" in drawn
    assert ">reserved, one GPU (1)<" in drawn


def test_another_format_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"written as \.svg or \.png"):
        draw([BOTH], tmp_path / "errors.bmp")


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        draw([BOTH], tmp_path / "nowhere" / "errors.svg")
