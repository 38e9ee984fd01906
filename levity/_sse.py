"""Reading a stream of Server-Sent Events (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSentEvent:
    event: str
    data: str
    id: str


def parse(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """Events of a stream given line by line, without line ends.

    >>> list(parse(["id: 7", "event: progress", "data: {}", ""]))
    [ServerSentEvent(event='progress', data='{}', id='7')]
    """
    event, data, last_id = "message", list[str](), ""
    for line in lines:
        if not line:
            if data:
                yield ServerSentEvent(event, "\n".join(data), last_id)
            event, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            last_id = value
