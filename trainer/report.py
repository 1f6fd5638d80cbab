"""A report that anyone can open: one HTML file with its pictures inside, no script, nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #22262b; --faint: #5c646d; --line: #dfe3e8; --code: #f3f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e4e7eb; --faint: #a0a8b2; --line: #353b43; --code: #22272d; }
}
body { max-width: 60rem; margin: 2.5rem auto; padding: 0 1.25rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { padding: .7rem .9rem; overflow-x: auto; border-radius: 6px; background: var(--code);
  font: .9rem/1.4 ui-monospace, monospace; }
figure { margin: 1.25rem 0; }
img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
figcaption { color: var(--faint); font-size: .9rem; }
"""


@dataclass(frozen=True)
class Heading:
    """Starts a part of the report."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Code:
    """A line to copy, such as a command."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under headers; numbers are rounded to four digits and aligned right, None stays empty."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows."""

    image: Image.Image
    caption: str


Section = Heading | Paragraph | Code | Table | Figure


def write_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the sections in their order into one HTML file, replacing an older one only when complete."""
    body = "\n".join(map(_section, sections))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _section(section: Section) -> str:
    if isinstance(section, Table):
        return _table(section)
    if isinstance(section, Figure):
        return _figure(section)
    tag = {Heading: "h2", Paragraph: "p", Code: "pre"}[type(section)]
    return f"<{tag}>{escape(section.text)}</{tag}>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in table.headers)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>'


def _cell(value: str | int | float | None) -> str:
    if value is None or isinstance(value, str):
        return f"<td>{escape(value or '')}</td>"
    return f'<td class="number">{value if isinstance(value, int) else format(value, ".4g")}</td>'


def _figure(figure: Figure) -> str:
    png = io.BytesIO()
    figure.image.save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode("ascii")
    caption = escape(figure.caption)
    size = f'width="{figure.image.width}" height="{figure.image.height}"'
    return (
        f'<figure><img src="data:image/png;base64,{data}" {size} alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
