"""Conversations that are too long, cut where the client allows it: whole turns are left out, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence

from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.responses.conversion import NAMES, to_chat
from xlaserve.server.responses.items import Item
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.state import ServerState
from xlaserve.server.translation import in_terms_of


async def truncated(body: CreateResponse, items: Sequence[Item], state: ServerState) -> ChatCompletionRequest:
    """The chat completion request for a conversation, without its oldest turns where `truncation` is "auto" and all do not fit.

    A turn begins with a message of the user; system and developer messages that open the conversation stay. Where not even the last turn
    fits, it is all that is left, and refused later like any prompt that is too long.

    Args:
        body: the request.
        items: the conversation, the oldest first.
        state: knows the engine, whose context length counts.

    Raises:
        InvalidRequestError, pydantic.ValidationError: as `to_chat`.
    """
    whole = to_chat(body, items)
    if body.truncation != "auto":
        return whole
    room = state.require_engine().max_model_len - max(body.max_output_tokens or 1, 1)
    opening = next((number for number, item in enumerate(items) if not _opens(item)), len(items))
    starts = [opening, *(number for number, item in enumerate(items) if number > opening and item.get("role") == "user")]

    def shortened(start: int) -> ChatCompletionRequest:
        return whole if start == opening else to_chat(body, [*items[:opening], *items[start:]])

    async def fits(start: int) -> bool:
        with in_terms_of(NAMES):
            prompt = await chat_prompt(shortened(start), state, bounded=False)
        return len(prompt.token_ids) <= room

    # The later the start, the shorter the prompt: halving finds the first that fits with few renderings.
    low, high = 0, len(starts) - 1
    if await fits(starts[low]):
        return whole
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if await fits(starts[middle]) else (middle, high)
    return shortened(starts[high])


def _opens(item: Item) -> bool:
    return item["type"] == "message" and item["role"] in ("system", "developer")
