"""What steps say of themselves, whatever its shape, as lists and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compression.report.markup import Markup, element, join

_MAX_ROWS = 500
_MAX_LIST = 40


def definitions(facts: Mapping[str, object]) -> Markup:
    """Names and plain values as a list; lists of records as tables below it."""
    plain = {name: value for name, value in facts.items() if not _is_table(value)}
    parts = [_list(plain)] if plain else []
    for name, value in facts.items():
        if isinstance(value, Sequence) and _is_table(value):
            parts += [element("h3", _words(name)), records(value)]
    return join(*parts)


def _is_table(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _list(plain: Mapping[str, object]) -> Markup:
    return element(
        "dl",
        *(join(element("dt", _words(name)), element("dd", _cell(name, value))) for name, value in plain.items()),
    )


def records(rows: Sequence[Mapping[str, object]]) -> Markup:
    """A table with a column for every key that occurs, in the order in which the keys first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {key for key in columns if all(_is_number(row.get(key, 0)) for row in rows)}
    head = (element("th", _words(key), class_="number" if key in numeric else None) for key in columns)
    body = (
        element(
            "tr",
            *(
                element("td", _cell(key, row.get(key, "")), class_="number" if key in numeric else None)
                for key in columns
            ),
        )
        for row in rows[:_MAX_ROWS]
    )
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    rest = len(rows) - _MAX_ROWS
    more = element("p", f"and {rest:,} more, which report.json lists", class_="soft") if rest > 0 else None
    return join(element("div", table, class_="scroll"), more)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(name: str, value: object) -> str:
    if name.endswith("shape") and isinstance(value, list | tuple):
        return " \N{MULTIPLICATION SIGN} ".join("?" if length is None else str(length) for length in value)
    return text(value)


def text(value: object) -> str:
    """One value in one line.

    >>> text(0.123456), text([3, 3]), text(True), text(None), text({"a": 1.5})
    ('0.1235', '3, 3', 'yes', '', 'a 1.5')
    >>> text([])
    'none'
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(value, list | tuple | Mapping) and not value:
        return "none"
    if isinstance(value, list | tuple):
        shown = ", ".join(text(one) for one in value[:_MAX_LIST])
        return f"{shown} and {len(value) - _MAX_LIST:,} more" if len(value) > _MAX_LIST else shown
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text(one)}" for key, one in value.items())
    return "" if value is None else str(value)
