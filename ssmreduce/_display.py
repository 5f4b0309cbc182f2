"""How results print: numbers with few digits, one line, or a table in text and HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from ssmreduce._array_libraries import is_traced, to_host


def short(value: Any) -> str:
    """A number with three digits, or least and largest entry of an array; "None" for None."""
    if value is None:
        return "None"
    if is_traced(value):
        return "traced"
    numbers = to_host(value)
    if numbers.size == 0:
        return "nothing"
    least, largest = (_digits(x) for x in (numbers.min(), numbers.max()))
    return least if least == largest else f"{least} to {largest}"


def cell(value: Any) -> str:
    """An entry of a table: text as it is, else `short`; "-" for None."""
    if isinstance(value, str):
        return value
    return "-" if value is None else short(value)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns, the first of them to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            entry.rjust(width) if column else entry.ljust(width)
            for column, (entry, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as an HTML table, whose first row is the head."""
    head, *body = rows
    lines = [_html_row(head, "th"), *(_html_row(row, "td") for row in body)]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _html_row(row: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(entry)}</{tag}>" for entry in row) + "</tr>"


def _digits(value: Any) -> str:
    return f"{value:.3g}" if value.dtype.kind == "f" else str(value)
