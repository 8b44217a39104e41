"""A YAML file that a user brings: its values, each with its line; aliases that would explode are refused first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mixq.documents import check_values, read_text, too_deep
from mixq.errors import InputError, first_line
from mixq.validation import explain, few

MOST_VALUES = 100_000  # with the aliases written out: a few lines of them can stand for billions
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True)
class YamlFile:
    """A YAML file: its values, and the nodes that they were read from."""

    path: Path
    content: Any
    root: Any

    def line(self, location: Sequence[int | str]) -> int:
        """The line (from 1) of the deepest YAML node on the way to `location`."""
        node = self.root
        line = 1 if node is None else int(node.start_mark.line) + 1
        for part in location:
            if isinstance(node, yaml.MappingNode):
                found = [(key, value) for key, value in node.value if key.value == str(part)]
                if not found:
                    continue
                line, node = int(found[0][0].start_mark.line) + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                line = int(node.start_mark.line) + 1
        return line


def read_yaml(path: str | Path, what: str, example: str) -> YamlFile:
    """Raises InputError, naming `what` it is to be and an `example`, for what cannot be read or is no honest YAML."""
    text = read_text(path, what, example)
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        _check_nodes(path, root)
        content = None if root is None else loader.construct_document(root)
    except InputError:
        raise
    except RecursionError:
        raise too_deep(str(path)) from None
    except Exception as error:  # the constructors of PyYAML 6 raise whatever their text makes Python raise
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}{where}: not valid YAML: {reason}; {example}") from None
    check_values(content, str(path))
    return YamlFile(Path(path), content, root)


def validated(file: YamlFile, model: type[_Model]) -> _Model:
    """What the file holds, as `model`. Raises InputError with file, line, field, rule and what is known."""
    try:
        return model.model_validate(file.content)
    except ValidationError as error:
        reasons = [
            f"{file.path} line {file.line(location)}: {sentence}" for location, sentence in explain(error, model)
        ]
        raise InputError("\n".join(few(reasons))) from None


def _check_nodes(path: str | Path, root: Any) -> None:
    """Refuse keys given twice, aliases of what holds them, and aliases that stand for too much."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Any) -> int:
        if id(node) in open_nodes:
            raise InputError(f"{path} line {node.start_mark.line + 1}: a value that holds itself; write it out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child) for child in _children(path, node))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if root is not None and size(root) > MOST_VALUES:
        raise InputError(f"{path} holds {size(root)} values, its aliases written out; give at most {MOST_VALUES}")


def _children(path: str | Path, node: Any) -> list[Any]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            # YAML itself lets the last of two equal keys win, which no one means.
            raise InputError(f"{path} line {key.start_mark.line + 1}: {key.value} is given twice; keep one")
        seen.add(str(key.value))
    return [part for pair in node.value for part in pair]
