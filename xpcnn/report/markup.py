"""HTML written by functions: whatever is not HTML already is escaped, so that no name or setting can become markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

VOID = {"img", "link", "meta"}
MOST = 60  # characters shown of a name


class Html(str):
    """Text that is HTML."""


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element.

    Children are put inside, escaped unless they are `Html`. Attributes are escaped; those that are None or False are
    left out, True stands for a name without a value. ``class_`` is class and ``aria_label`` aria-label.
    """
    given = {key: value for key, value in attributes.items() if value is not None and value is not False}
    written = "".join(f" {_name(key)}{_value(value)}" for key, value in given.items())
    start = f"<{name}{written}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Html:
    """Return parts one after the other, escaped unless they are `Html`."""
    return Html(between.join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def short(name: str) -> str:
    """Return a name, cut if it is very long."""
    return name if len(name) <= MOST else f"{name[: MOST - 1]}…"


def table(
    caption: str,
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: int = 1,
    sortable: bool = False,
    head: bool = True,
) -> Html:
    """Return a table in a box that it can be scrolled in; the first cell of each row is its heading.

    The first ``words`` columns are text, the others numbers. The caption is for those who cannot see the page.
    """
    kinds = ["" if number < words else "number" for number in range(len(headings))]
    top = [tag("th", h, scope="col", class_=kind or None) for h, kind in zip(headings, kinds, strict=True)]
    body = []
    for first, *others in rows:
        cells = [tag("td", cell, class_=kind or None) for cell, kind in zip(others, kinds[1:], strict=True)]
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    return scroll(
        tag(
            "table",
            tag("caption", caption, class_="unseen"),
            tag("thead", tag("tr", *top), class_=None if head else "unseen"),
            tag("tbody", *body),
            class_="sortable" if sortable else None,
        ),
        caption,
    )


def scroll(content: Html, label: str) -> Html:
    """Return content in a box of its own that scrolls, by keyboard too, where it is too wide or too high."""
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: object) -> str:
    return "" if value is True else f'="{html.escape(str(value))}"'
