"""Just enough HTML: elements whose text is escaped unless it is Markup already."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape


class Markup(str):
    """Text that is HTML; any other text is escaped where it is put into an element."""

    __slots__ = ()


def el(tag: str, *content: object, **attributes: str) -> Markup:
    """<tag attributes>content</tag>; `class_` stands for class. Attributes and content are escaped."""
    written = "".join(f' {name.rstrip("_")}="{escape(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{written}>{join(*content)}</{tag}>")


def join(*content: object) -> Markup:
    return Markup("".join(part if isinstance(part, Markup) else escape(str(part)) for part in content))


def table(head: Sequence[object], rows: Sequence[Markup]) -> Markup:
    """In a box of its own, which scrolls sideways where the table is wide."""
    header = el("tr", *(el("th", name) for name in head))
    return el("div", el("table", el("thead", header), el("tbody", *rows)), class_="scroll")


def image(svg: bytes, description: str) -> Markup:
    """The plot inside the page: nothing is fetched from anywhere."""
    data = base64.b64encode(svg).decode()
    return Markup(f'<img alt="{escape(description)}" src="data:image/svg+xml;base64,{data}">')


def number(value: object, digits: int = 4) -> str:
    """Significant digits; a dash for what there is not."""
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or math.isnan(value):
        return "–"
    text = f"{value:.{digits}g}"
    return f"−{text[1:]}" if text.startswith("-") else text
