"""One page of a list of items, as OpenAI's lists are cut into pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlaserve.errors import InvalidRequestError
from xlaserve.server.errors import shown
from xlaserve.server.responses.items import Item

MAX_LIMIT = 100


def item_page(items: Sequence[Item], *, limit: int, order: str, after: str | None) -> dict[str, Any]:
    """The list object.

    Args:
        items: the oldest first.
        limit: most items of the page, 1 to 100.
        order: "asc" for the oldest first, "desc" for the latest first.
        after: id of the item that the page follows; None for the first page.

    Raises:
        InvalidRequestError: the limit or the order is out of range, or there is no item of the id.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError(f"`limit` must be between 1 and {MAX_LIMIT}, got {limit}.", field="limit", value=limit)
    if order not in ("asc", "desc"):
        raise InvalidRequestError(f"`order` must be asc or desc, got {shown(order)}.", field="order", value=order)
    ordered = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise InvalidRequestError(f"`after` must be the id of an item, got {shown(after)}.", field="after", value=after)
        start = ids.index(after) + 1
    data = ordered[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": start + limit < len(ordered),
    }
