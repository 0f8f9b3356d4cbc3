"""What is kept of responses is bounded, counted exactly, and shared along a conversation."""

from __future__ import annotations

import pytest

from tests.server.scripted_chat import TEXT, ScriptedChat, run
from tests.server.test_response_events import of
from xlaserve.server.errors import PreviousResponseNotFoundError, ResponseNotFoundError
from xlaserve.server.responses.items import input_items
from xlaserve.server.responses.record import Record, Turns
from xlaserve.server.responses.store import ResponseStore


def nothing(item_id: str) -> None:
    """There is no item to be referred to."""


def ended(store: ResponseStore, text: str = "hi", history: Turns = (), *, keep_events: bool = False) -> Record:
    record = Record(of(ScriptedChat([TEXT])), history, input_items(text, nothing), store.settle, keep_events=keep_events)
    store.add(record)
    run(record.generate_all())
    assert record.run is None
    return record


def test_the_least_recently_asked_for_goes_first() -> None:
    store = ResponseStore(2, 10**6)
    first, second = ended(store), ended(store)
    store.get(first.id)
    third = ended(store)
    assert len(store) == 2
    assert store.get(first.id) is first
    assert store.get(third.id) is third
    with pytest.raises(ResponseNotFoundError, match=second.id):
        store.get(second.id)


def test_bytes_are_bounded() -> None:
    one = ResponseStore(10, 10**6)
    ended(one, "x" * 1000)
    store = ResponseStore(1000, one.bytes * 3 + 100)
    for _ in range(10):
        ended(store, "x" * 1000)
        assert store.bytes <= one.bytes * 3 + 100
    assert len(store) == 3
    ended(store, "x" * 10_000)
    assert (len(store), store.bytes) == (0, 0)


def test_a_conversation_counts_once() -> None:
    store = ResponseStore(100, 10**9)
    history: Turns = ()
    records = []
    for _ in range(10):
        records.append(ended(store, "x" * 10_000, history))
        history = store.conversation(records[-1].id)
    assert store.bytes < 10 * 12_000
    assert len(records[-1].items()) == 19
    store.remove(records[0])
    assert store.bytes > 9 * 10_000
    for record in records[1:]:
        store.remove(record)
    assert (len(store), store.bytes) == (0, 0)


def test_events_count_too() -> None:
    plain, eventful = ResponseStore(10, 10**6), ResponseStore(10, 10**6)
    ended(plain)
    record = ended(eventful, keep_events=True)
    assert record.events is not None
    assert eventful.bytes - plain.bytes == sum(map(len, record.events))


def test_what_runs_is_not_forgotten_and_not_continued() -> None:
    store = ResponseStore(0, 0)
    record = Record(of(ScriptedChat([TEXT])), (), input_items("hi", nothing), store.settle, keep_events=False)
    store.add(record)
    ended(store)
    assert store.get(record.id) is record
    with pytest.raises(PreviousResponseNotFoundError, match="has not ended"):
        store.conversation(record.id)
    run(record.generate_all())
    with pytest.raises(PreviousResponseNotFoundError, match="not kept"):
        store.conversation(record.id)
    assert (len(store), store.bytes) == (0, 0)


def test_deleted_while_it_runs() -> None:
    store = ResponseStore(10, 10**6)
    record = Record(of(ScriptedChat([TEXT])), (), input_items("hi", nothing), store.settle, keep_events=False)
    store.add(record)
    store.remove(record)
    run(record.generate_all())
    assert record.run is None
    assert (len(store), store.bytes) == (0, 0)


def test_items_are_found_as_long_as_their_response_is_kept() -> None:
    store = ResponseStore(1, 10**6)
    record = ended(store)
    (item_id,) = record.item_ids
    found = store.item(item_id)
    assert found is not None
    assert found["content"][0]["text"] == "Hello"
    assert input_items([{"type": "item_reference", "id": item_id}], store.item) == [found]
    assert store.item("msg_other") is None
    ended(store)
    assert store.item(item_id) is None
