"""A report as Markdown, JSON and one self-contained HTML page."""

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from stem_torchrec.errors import environment_failures

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        best: (row, column) of the cells to mark.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)]]
        for i, row in enumerate(self.rows):
            cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
            lines.append([f"**{c}**" if (i, j) in self.best else c for j, c in enumerate(cells)])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = []
        for i, row in enumerate(self.rows):
            cells = [html.escape(cell) for cell in row]
            marked = [f"<b>{c}</b>" if (i, j) in self.best else c for j, c in enumerate(cells)]
            body.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in marked) + "</tr>")
        return f"<table><tr>{head}</tr>{''.join(body)}</table>"


@dataclass(frozen=True)
class Section:
    """A heading with any of text, table and plot."""

    heading: str
    text: str = ""
    table: Table | None = None
    plot: Figure | None = None


@dataclass(frozen=True)
class Report:
    """What a command has found.

    Attributes:
        data: the same figures for programs.
        origin: one line: versions, hardware, command.
    """

    title: str
    sections: Sequence[Section]
    data: dict[str, Any]
    origin: str = ""

    def write(self, folder: Path, name: str) -> list[Path]:
        """Write ``name.md`` (with ``name_K.png`` beside it), ``name.json`` and ``name.html``.

        Raises:
            EnvironmentFailure: the disk is full or does not let us.
        """
        with environment_failures(folder):
            return self._write(folder, name)

    def _write(self, folder: Path, name: str) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        images = {i: _png(s.plot) for i, s in enumerate(self.sections) if s.plot is not None}
        plots = {i: folder / f"{name}_{n}.png" for n, i in enumerate(images, start=1)}
        for i, path in plots.items():
            path.write_bytes(images[i])
        texts = {
            "md": self._markdown({i: path.name for i, path in plots.items()}),
            "json": json.dumps(self.data, indent=2) + "\n",
            "html": self._html(images),
        }
        for ending, text in texts.items():
            (folder / f"{name}.{ending}").write_text(text)
        return [folder / f"{name}.{ending}" for ending in texts] + list(plots.values())

    def _markdown(self, plots: dict[int, str]) -> str:
        parts = [f"# {self.title}"]
        for i, section in enumerate(self.sections):
            parts += [f"## {section.heading}", section.text]
            parts += [section.table.markdown()] if section.table else []
            parts += [f"![{section.heading}]({plots[i]})"] if i in plots else []
        return "\n\n".join(part for part in [*parts, self.origin] if part) + "\n"

    def _html(self, images: dict[int, bytes]) -> str:
        parts = [f"<h1>{html.escape(self.title)}</h1>"]
        for i, section in enumerate(self.sections):
            parts += [f"<h2>{html.escape(section.heading)}</h2>"]
            parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
            parts += [section.table.html()] if section.table else []
            if i in images:
                encoded = base64.b64encode(images[i]).decode()
                alt = html.escape(section.heading, quote=True)
                parts += [f'<img alt="{alt}" src="data:image/png;base64,{encoded}">']
        parts += [f"<p><small>{html.escape(self.origin)}</small></p>"] if self.origin else []
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title>'
        head += f"<style>{STYLE}</style>"
        body = "\n".join(parts)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _png(plot: Figure) -> bytes:
    buffer = BytesIO()
    plot.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return buffer.getvalue()
