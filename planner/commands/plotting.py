"""`--plot PICTURE`: the memory of an answer, drawn into a file."""

from pathlib import Path

from planner.predict.prediction import Prediction
from planner.search.planning import Plan


def check_plot(path: Path | None) -> None:
    """Raise ConfigError for a name that no picture can have, before any work is done."""
    if path is not None:
        from planner.picture.picture_file import check_picture_path

        check_picture_path(path)


def write_plot(answer: Plan | Prediction, path: Path | None) -> None:
    """Draw the memory of `answer` into the file that was asked for, if one was."""
    if path is not None:
        from planner.picture.picture_file import write_picture
        from planner.picture.shapes import titled

        write_picture(titled(answer.picture, answer.caption), path)
