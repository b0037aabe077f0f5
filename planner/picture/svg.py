"""A picture as SVG, for a page, a notebook or a file."""

from html import escape

from planner.picture.shapes import LIGHT, Ink, Line, Picture, Rect, Shape, Text

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def svg(picture: Picture, *, paper: bool = False) -> str:
    """`picture` as one SVG element; with `paper` on a white ground, as a file that is shown anywhere."""
    width, height = picture.width, picture.height
    ground = (Rect(0, 0, width, height, "paper"),) if paper else ()
    shapes = "".join(_element(shape) for shape in (*ground, *picture.shapes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(picture.description)}" font-family="{FONT}">{shapes}</svg>'
    )


def figure(caption: str, picture: Picture) -> str:
    """`picture` below a caption, as notebooks show it."""
    return f'<figure style="margin:0"><figcaption>{escape(caption)}</figcaption>{svg(picture, paper=True)}</figure>'


def _element(shape: Shape) -> str:
    match shape:
        case Rect(x, y, width, height, ink, title):
            told = f"<title>{escape(title)}</title>" if title else ""
            size = f'width="{width:.1f}" height="{height:.1f}"'
            return f'<rect x="{x:.1f}" y="{y:.1f}" {size} {_color("fill", ink)}>{told}</rect>'
        case Line(x1, y1, x2, y2, ink, width):
            ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            return f'<line {ends} {_color("stroke", ink)} stroke-width="{width:g}"/>'
        case Text(x, y, words, ink, size, anchor, bold):
            weight = ' font-weight="600"' if bold else ""
            place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
            return f"<text {place}{weight} {_color('fill', ink)}>{escape(words)}</text>"


def _color(what: str, ink: Ink) -> str:
    """The color twice: programs that know no variables read the attribute."""
    return f'{what}="{LIGHT[ink]}" style="{what}:var(--ink-{ink},{LIGHT[ink]})"'
