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


def table(head: Sequence[str], rows: Sequence[Markup], numeric: Sequence[str] = ()) -> Markup:
    """In a box of its own, which scrolls sideways where the table is wide. `numeric`: columns set to the right."""
    header = el("tr", *(el("th", name, class_="n" if name in numeric else "") for name in head))
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
    text = f"{value:,.0f}" if 10**digits <= abs(value) < 1e9 else f"{value:.{digits}g}"
    return f"−{text[1:]}" if text.startswith("-") else text


def size_text(size_bytes: float) -> str:
    unit, scale = size_unit(size_bytes)
    return f"{size_bytes / scale:.3g} {unit}"


def size_unit(size_bytes: float) -> tuple[str, float]:
    """The unit that suits the size, and its bytes."""
    return ("MB", 1e6) if size_bytes >= 1e6 else ("kB", 1e3)
