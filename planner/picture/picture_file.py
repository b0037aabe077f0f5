"""A picture as a file, in the format that its name asks for."""

from pathlib import Path

from planner.picture.png import png
from planner.picture.shapes import Picture
from planner.picture.svg import svg
from profiles.errors import ConfigError

FORMATS = (".svg", ".png")


def check_picture_path(path: Path) -> None:
    """Raise ConfigError for a name that is no .svg or .png file."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"the picture is to be {path}, but it is drawn as .svg or .png", hint="give it such a name")


def write_picture(picture: Picture, path: Path) -> None:
    """Write `picture` to `path`. Raises ConfigError where it cannot be written, EnvironmentFault without Pillow."""
    check_picture_path(path)
    drawn = png(picture) if path.suffix.lower() == ".png" else svg(picture, paper=True).encode()
    try:
        path.write_bytes(drawn)
    except OSError as error:
        raise ConfigError(f"the picture {path} cannot be written: {error.strerror}") from error
