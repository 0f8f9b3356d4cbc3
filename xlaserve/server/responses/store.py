"""The responses that are kept, in memory and bounded: the one that was asked for least recently goes first. A restart forgets all."""

from __future__ import annotations

from collections import Counter, OrderedDict

from xlaserve.server.errors import PreviousResponseNotFoundError, ResponseNotFoundError, shown
from xlaserve.server.responses.items import Item
from xlaserve.server.responses.record import Record, Turns


class ResponseStore:
    """Used on the event loop thread only.

    Args:
        max_responses: most finished responses kept.
        max_bytes: most bytes that they hold; what the responses of one conversation share counts once.
    """

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._by_item: dict[str, Record] = {}
        self._holders: Counter[int] = Counter()
        self._finished = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> None:
        """Keeps a response that is being generated. How many of those there are is bounded by the engine's queue."""
        self._records[record.id] = record

    def settle(self, record: Record) -> None:
        """The response has ended: it counts from now on, and others may go for it, or it itself where it is too large.

        Harmless when called again, and for a response that is not kept.
        """
        if record.run is None:
            return
        record.settle()
        if self._records.get(record.id) is not record:
            return
        self._records.move_to_end(record.id)
        self._finished += 1
        self._by_item |= dict.fromkeys(record.item_ids, record)
        self.bytes += record.own_bytes
        for turn in record.turns:
            self._holders[id(turn)] += 1
            if self._holders[id(turn)] == 1:
                self.bytes += len(turn)
        self._evict()

    def get(self, response_id: str) -> Record:
        """The response of this id.

        Raises:
            ResponseNotFoundError: there is none, or none any more.
        """
        record = self._records.get(response_id)
        if record is None:
            raise ResponseNotFoundError(f"There is no response {shown(response_id)}: it was not stored, or it was forgotten since.")
        self._records.move_to_end(response_id)
        return record

    def conversation(self, response_id: str) -> Turns:
        """The conversation that a response ends, to be continued.

        Raises:
            PreviousResponseNotFoundError: there is no such response that has ended.
        """
        record = self._records.get(response_id)
        if record is None or record.run is not None:
            state = "is not kept here (any more)" if record is None else "has not ended"
            message = f"`previous_response_id`: the response {shown(response_id)} {state}."
            raise PreviousResponseNotFoundError(message, field="previous_response_id", value=response_id)
        self._records.move_to_end(response_id)
        return record.turns

    def item(self, item_id: str) -> Item | None:
        """The output item of this id, of a response that is kept and has ended; None where there is none."""
        record = self._by_item.get(item_id)
        if record is None:
            return None
        self._records.move_to_end(record.id)
        return record.output(item_id)

    def remove(self, record: Record) -> None:
        """Forgets a response."""
        if self._records.pop(record.id, None) is None or record.run is not None:
            return
        self._finished -= 1
        for item_id in record.item_ids:
            del self._by_item[item_id]
        self.bytes -= record.own_bytes
        for turn in record.turns:
            self._holders[id(turn)] -= 1
            if not self._holders[id(turn)]:
                del self._holders[id(turn)]
                self.bytes -= len(turn)

    def _evict(self) -> None:
        if not self._too_full():
            return
        for record in [record for record in self._records.values() if record.run is None]:
            self.remove(record)
            if not self._too_full():
                return

    def _too_full(self) -> bool:
        return self._finished > self._max_responses or self.bytes > self._max_bytes
