"""Read YAML, and refuse duplicate keys and very deep nesting, which no file of settings needs."""

from __future__ import annotations

from typing import Any

from common.errors import InputError

DEEPEST = 40
"""Lists and mappings within each other; the deepest of a data config are five."""
MOST_NODES = 1_000_000
"""Values in all, each use of an alias counted: a few lines of aliases may stand for 10^9."""


LARGEST = 2_000_000
"""Characters, far above any real file; PyYAML reads about 100,000 in a second."""


def load(text: str, where: str) -> Any:
    """Return the content of a YAML or JSON text; `where` begins the errors.

    Raises InputError for a text that is no YAML or too long, and for one with a key twice in a
    mapping, where PyYAML would silently take the last.
    """
    import yaml

    if len(text) > LARGEST:
        raise InputError(
            f"{where} has {len(text):,} characters, and no such file needs more than {LARGEST:,};"
            " is it the right file?"
        )
    node = None
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InputError(
            f"{where} is neither YAML nor JSON: {_problem(error)}; correct the file there"
        ) from None
    except RecursionError:
        raise InputError(
            f"{where}: lists and mappings are nested more than {DEEPEST} deep; flatten them"
        ) from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        # of a date such as 2001-99-99, a number of 5,000 digits, the escape \UFFFFFFFF
        line = _line_of_fault(node) if node else loader.line + 1
        place = f"{where}, line {line}" if line else where
        raise InputError(
            f"{place}: a value cannot be read: {error}; correct it, or put it in quotes to make it"
            " text"
        ) from None


def _line_of_fault(root: Any) -> int:
    """Return the line of the first scalar that cannot become a value; 0 if there is none."""
    import yaml

    loader = yaml.SafeLoader("")
    waiting: list[Any] = [root]
    visited_ids: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited_ids:
            continue
        visited_ids.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
        else:
            try:
                loader.construct_object(node)
            except (ValueError, TypeError, AttributeError, OverflowError, yaml.YAMLError):
                return int(node.start_mark.line) + 1
    return 0


def _problem(error: Exception) -> str:
    """Return PyYAML's message without the quoted line of the file, which may contain a secret."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem or mark is None:
        return " ".join(str(error).split())
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"


_KINDS: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    type(None): "an empty value",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def kind_of(value: object) -> str:
    """Describe in words what type a value from a YAML or JSON file has, for an error."""
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def _check(root: Any, where: str) -> None:
    """Raise InputError for duplicate keys, deep nesting, circles and too many values."""
    sizes: dict[int, int] = {}
    _size(root, where, 0, sizes, set())


def _size(node: Any, where: str, depth: int, sizes: dict[int, int], above: set[int]) -> int:
    """Return how many values a node stands for, with those of its aliases.

    `sizes` has the results by the node's id, `above` the ids of the nodes around this one.
    """
    import yaml

    line = node.start_mark.line + 1
    if id(node) in above:
        raise InputError(
            f"{where}, line {line}: a list or mapping contains itself; remove the alias (*name)"
        )
    if depth > DEEPEST:
        raise InputError(
            f"{where}, line {line}: lists and mappings are nested more than {DEEPEST} deep;"
            " flatten them"
        )
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in sizes:
        return sizes[id(node)]
    children = node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node, where)
        children = [part for pair in node.value for part in pair]
    above.add(id(node))
    size = 1 + sum(_size(child, where, depth + 1, sizes, above) for child in children)
    above.discard(id(node))
    if size > MOST_NODES:
        raise InputError(
            f"{where}, line {line}: with its aliases (*name) this list or mapping has more than"
            f" {MOST_NODES:,} values; remove some of them"
        )
    sizes[id(node)] = size
    return size


def _refuse_duplicates(node: Any, where: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key.value, str) or key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if (key.tag, key.value) in lines:
            raise InputError(
                f"{where}, line {line}: the key '{key.value}' is there twice, before in line"
                f" {lines[key.tag, key.value]}; leave one out"
            )
        lines[key.tag, key.value] = line
