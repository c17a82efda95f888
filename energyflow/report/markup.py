"""Floor 8: numbers, words, tables and pictures as HTML; every text passes `html.escape` here."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from energyflow.plots.style import png

MISSING = "\N{EN DASH}"


def number(value: Any, digits: int = 2) -> str:
    """Return a number for people: fixed decimals, thousands apart, true minus and infinity; a dash for None."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return MISSING if value is None else str(value)
    if np.isnan(value):
        return "not a number"
    if np.isinf(value):
        return "\N{INFINITY}" if value > 0 else "\N{MINUS SIGN}\N{INFINITY}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{THIN SPACE}").replace("-", "\N{MINUS SIGN}")
    tiny = value != 0 and abs(value) < 0.5 * 10**-digits
    text = f"{value:.2g}" if tiny or abs(value) >= 1e6 else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def duration(seconds: Any) -> str:
    """Return seconds as "2 min 13 s"; a dash for what is no number."""
    if not is_finite(seconds):
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s" if not hours else ""]
    return " ".join(part for part in parts if part)


def is_finite(value: Any) -> bool:
    """Return whether `value` is a finite number."""
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def compared(difference: Any, stderr: Any, better: str = "better", worse: str = "worse") -> str:
    """Return in words what a difference of two estimates shows at 2 standard errors."""
    if not (is_finite(difference) and is_finite(stderr)):
        return "cannot be compared"
    if abs(difference) <= 2 * stderr:
        return "not distinguishable"
    return f"{better if difference > 0 else worse} by more than 2 standard errors"


def paragraph(text: str, kind: str = "") -> str:
    """Return one escaped paragraph; kind is a CSS class."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Return a list of escaped items."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, strong: Sequence[tuple[int, int]] = ()) -> str:
    """Return a table of escaped texts, the first column its row names; `strong` cells (row, column) are bold."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = []
    for i, (name, *cells) in enumerate(rows):
        marked = (f"<strong>{escape(c)}</strong>" if (i, j) in strong else escape(c) for j, c in enumerate(cells, 1))
        body.append(
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in marked) + "</tr>"
        )
    start = f"<thead><tr>{head}</tr></thead>" if head else ""
    kind = ' class="full"' if header else ""
    return f'<div class="wide"><table{kind}>{start}<tbody>{"".join(body)}</tbody></table></div>'


def badge(subject: str, verdict: str, grade: str) -> str:
    """Return a coloured label "subject: verdict"; grade is good, note, caution or bad."""
    return f'<span class="badge {grade}">{escape(subject)}: <strong>{escape(verdict)}</strong></span>'


def picture(draw: Callable[[], Figure], alt: str, caption: str) -> str:
    """Return a picture inside the page, with a text for those who cannot see it and a caption on how to read it.

    A picture that cannot be drawn from what the run left becomes a sentence saying so.
    """
    try:
        code = png(draw())
    except (ValueError, TypeError, KeyError, IndexError) as error:
        return paragraph(f"{alt}: could not be drawn, {error}.", "absent")
    image = f'<img src="data:image/png;base64,{code}" alt="{escape(alt, quote=True)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
