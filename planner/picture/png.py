"""A picture as PNG, drawn by Pillow with the font that it brings along."""

from io import BytesIO

from planner.picture.shapes import LIGHT, Line, Picture, Rect, Shape, Text
from profiles.errors import EnvironmentFault

SCALE = 2
"""Pixels of the file for each of the picture, so that it is sharp on any screen."""

ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(picture: Picture) -> bytes:
    """`picture` as the bytes of a PNG file. Raises EnvironmentFault without Pillow."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise EnvironmentFault(
            "a .png picture needs Pillow", hint="pip install 'fitune[plot]', or name a .svg file"
        ) from error
    image = Image.new("RGB", (picture.width * SCALE, picture.height * SCALE), LIGHT["paper"])
    draw = ImageDraw.Draw(image)
    for shape in picture.shapes:
        _draw(draw, shape)
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _draw(draw: object, shape: Shape) -> None:
    from PIL import ImageDraw, ImageFont

    assert isinstance(draw, ImageDraw.ImageDraw)
    match shape:
        case Rect(x, y, width, height, ink):
            edges = (x * SCALE, y * SCALE, (x + width) * SCALE - 1, (y + height) * SCALE - 1)
            if edges[2] >= edges[0]:
                draw.rectangle(edges, fill=LIGHT[ink])
        case Line(x1, y1, x2, y2, ink, width):
            ends = (x1 * SCALE, y1 * SCALE, x2 * SCALE, y2 * SCALE)
            draw.line(ends, fill=LIGHT[ink], width=max(1, round(width * SCALE)))
        case Text(x, y, words, ink, size, anchor):
            font = ImageFont.load_default(size * SCALE)
            draw.text((x * SCALE, y * SCALE), words, fill=LIGHT[ink], font=font, anchor=ANCHORS[anchor])
