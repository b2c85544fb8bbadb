"""Small pieces of HTML: escaped text, tables, and folded parts."""

from __future__ import annotations

import html
from collections.abc import Sequence


def escaped(text: object) -> str:
    """Text as HTML shows it."""
    return html.escape(str(text), quote=True)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", marked: Sequence[int] = ()
) -> str:
    """A table of HTML cells; the first column is a header, rows at `marked` are highlighted."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = []
    for place, row in enumerate(rows):
        cells = f'<th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:])
        body.append(f'<tr class="marked">{cells}</tr>' if place in marked else f"<tr>{cells}</tr>")
    parts = f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{parts}</table></div>'


def folded(title: str, content: str) -> str:
    """Content behind a title that opens it."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escaped(text)}</p>"
