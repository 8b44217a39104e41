"""Documents that are almost right: values removed, added, retyped or made extreme; text repeated, cut or flipped."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

EXTREME = st.sampled_from(
    [0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -1e-320, float("inf"), float("-inf"), float("nan"), -0.0]
)
TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "int8", "fp32", "\0", "\x1b[31m", "\n\n\n\n", "..", "/etc/passwd", "*", "[", "[!", "é", "名前", "\u202e"]
    ),
)
PLAIN = st.one_of(st.none(), st.booleans(), EXTREME, st.floats(), TEXT)
JUNK = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)), max_leaves=5
)


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one to three of its values changed."""
    found = deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(found))
        if not places:
            return draw(JUNK)
        parent, key = draw(st.sampled_from(places))
        draw(st.sampled_from([_remove, _retype, _nest, _add, _move]))(draw, parent, key)
    return found


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """`text` as it is, mostly; else cut, with a line twice, or with a character changed."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "repeat", "flip", "insert"]))
    at = draw(st.integers(0, max(0, len(text) - 1)))
    if kind == "cut":
        return text[:at]
    if kind == "repeat":
        lines = text.splitlines(keepends=True) or [""]
        line = at % len(lines)
        return "".join([*lines[:line], lines[line], *lines[line:]])
    if kind == "flip" and text:
        return text[:at] + chr(ord(text[at]) ^ (1 << draw(st.integers(0, 6)))) + text[at + 1 :]
    if kind == "insert":
        return (
            text[:at]
            + draw(st.sampled_from(["[", "{", "&a ", "*a", "!!python/object:x ", "\\ud800", "\0", "<<: ", "'"]))
            + text[at:]
        )
    return text


Change = Callable[[st.DrawFn, Any, Any], None]


def _places(value: Any) -> Any:
    """(container, key or index) of every value in it."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield value, key
        yield from _places(child)


def _remove(_draw: st.DrawFn, parent: Any, key: Any) -> None:
    del parent[key]


def _retype(draw: st.DrawFn, parent: Any, key: Any) -> None:
    parent[key] = draw(JUNK)


def _nest(draw: st.DrawFn, parent: Any, key: Any) -> None:
    for _ in range(draw(st.sampled_from([1, 2, 60]))):
        parent[key] = [parent[key]] if draw(st.booleans()) else {"a": parent[key]}


def _add(draw: st.DrawFn, parent: Any, key: Any) -> None:
    if isinstance(parent, dict):
        parent[draw(TEXT)] = draw(JUNK)
    else:
        parent.insert(key, draw(JUNK))


def _move(draw: st.DrawFn, parent: Any, key: Any) -> None:
    """Under another name, or once more."""
    if isinstance(parent, dict):
        parent[draw(TEXT)] = parent.pop(key)
    else:
        parent.append(deepcopy(parent[key]))
