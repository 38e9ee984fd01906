"""HTML that is escaped by construction: text becomes markup only through here."""

from __future__ import annotations

import html


class Markup(str):
    """Text that is HTML already. Everything else is escaped when it is put into an element."""

    __slots__ = ()


_VOID = frozenset({"meta", "rect", "line", "circle", "path"})


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """An element with its children and attributes, both escaped unless they are `Markup`.

    Attributes that are None are left out; a trailing underscore is dropped from their names and others become
    hyphens, so that `class_` and `stroke_width` can be written.

    >>> element("p", "a < b", element("b", "!"), class_="x", title='"')
    '<p class="x" title="&quot;">a &lt; b<b>!</b></p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID:
        return Markup(f"<{tag}{written}>" if tag == "meta" else f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: object) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup("".join(_escaped(child) for child in children if child is not None))


def _escaped(child: object) -> str:
    return child if isinstance(child, Markup) else html.escape(str(child))
