"""Figures as SVG inside a page: readable on white and on black, on a telephone, and without anything around them."""

import html
import io
import re
import warnings

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnemonics.reporting.figures import COLOURS, GREY, INK, LINE

THEME = {INK: "ink", GREY: "grey", LINE: "line"} | {colour: f"c{i}" for i, colour in enumerate(COLOURS)}


def small_figure(height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure for a page: 4.8 inches wide, so that its letters can be read on a telephone."""
    figure = Figure(figsize=(4.8, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=INK)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    return figure, axes


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an <svg> element for a page; the same figure gives the same text.

    Args:
        name: what its ids start with; different for each figure of a page.
        alt: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "image.composite_image": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the letters are those of the browser
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    tags = re.sub(r"<[^>]*>", lambda tag: for_page(tag[0], name), svg[svg.index("<svg") :])
    size = re.search(r'viewBox="[^"]*"', tags)[0]
    return f'<svg role="img" aria-label="{html.escape(alt)}" {size}>{tags[tags.index(">") + 1 :]}'


def for_page(tag: str, name: str) -> str:
    """A tag with ids of its own and the colours of the page."""
    for old, new in ((' id="', f' id="{name}-'), ('href="#', f'href="#{name}-'), ("url(#", f"url(#{name}-")):
        tag = tag.replace(old, new)
    return re.sub(r"(fill|stroke): (#[0-9a-f]{6})\b", themed, tag)


def themed(match: re.Match) -> str:
    prop, colour = match.groups()
    return f"{prop}: var(--{THEME[colour]}, {colour})" if colour in THEME else match[0]
