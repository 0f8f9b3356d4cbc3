"""KV events: a subscriber knows at any time what the prefix cache holds; on the wire they are what vLLM's subscribers read."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.conftest import TINY_ENGINE
from tests.engine.simulation import Simulation, Sizes
from tests.engine.test_scheduler import LOADS, run_alone
from tests.test_cli import ROOT
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.kv_publisher import END, KVEventsConfig, KVPublisher, parse_kv_events
from xlaserve.errors import ConfigError
from xlaserve.paged.block_pool import BlockPool
from xlaserve.paged.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, KVEventLog, block_name
from xlaserve.paged.prefix import chain, root_digest

TIMEOUT = 20_000


class Mirror:
    """What a router knows."""

    def __init__(self, pool: BlockPool) -> None:
        self.events: list[KVEvent] = []
        self.known: set[int] = set()
        self.tokens: dict[int, list[int]] = {}
        pool.events = KVEventLog(self.apply, pool.block_size)
        self._pool = pool

    def apply(self, events: list[KVEvent]) -> None:
        assert events
        self.events += events
        for event in events:
            match event:
                case BlockStored():
                    assert not self.known & {*event.block_hashes}
                    self.known |= {*event.block_hashes}
                    before = self.tokens[event.parent_block_hash] if event.parent_block_hash is not None else []
                    for at, name in enumerate(event.block_hashes, 1):
                        self.tokens[name] = before + event.token_ids[: at * event.block_size]
                case BlockRemoved():
                    assert self.known >= {*event.block_hashes}
                    self.known -= {*event.block_hashes}
                case AllBlocksCleared():
                    self.known.clear()

    def check(self) -> None:
        """It is what the pool can find, and what its blocks are said to hold has their names."""
        assert self._pool.events is not None
        self._pool.events.flush()
        assert self._pool.num_published == len(self.known)
        size = self._pool.block_size
        for name in self.known:
            names = {block_name(chain(root_digest(salt), self.tokens[name], size)[-1]) for salt in ("", "salt")}
            assert name in names


def test_events_of_prompts_and_answers() -> None:
    simulation = Simulation(Sizes(num_blocks=100))
    mirror = Mirror(simulation.pool)
    prompt = list(range(40))
    run_alone(simulation, prompt)
    names = [block_name(digest) for digest in chain(root_digest(""), prompt, 16)]
    assert mirror.events == [BlockStored(names, None, prompt[:32], 16)]
    run_alone(simulation, prompt)
    assert len(mirror.events) == 1, "what is known already is not told again"
    first = simulation.add(prompt + [5] * 8, most=20, stop=frozenset())
    simulation.settle()
    tokens = [*first.prompt_ids, *first.output_ids]
    names = [block_name(digest) for digest in chain(root_digest(""), tokens, 16)]
    assert mirror.events[1:] == [
        BlockStored([names[2]], names[1], tokens[32:48], 16),
        BlockStored([names[3]], names[2], tokens[48:64], 16),
    ]
    simulation.core.reset_prefix_cache()
    run_alone(simulation, prompt)
    assert isinstance(mirror.events[3], AllBlocksCleared)
    assert len(mirror.known) == 2
    mirror.check()


@pytest.mark.parametrize("load", ["several and tight", "searches and tight", "not ahead"])
def test_a_router_knows_what_there_is_throughout_a_storm(load: str) -> None:
    simulation = Simulation(LOADS[load], seed=3)
    mirror = Mirror(simulation.pool)
    step = simulation.step

    def checked() -> None:
        step()
        mirror.check()

    simulation.step = checked  # type: ignore[method-assign]
    simulation.run(500)
    assert {BlockStored, BlockRemoved} <= {type(event) for event in mirror.events}
    assert any(isinstance(event, AllBlocksCleared) for event in mirror.events) == bool(simulation.sizes.resets)


def frames(socket: zmq.Socket[bytes]) -> list[bytes]:
    assert socket.poll(TIMEOUT), "nothing came"
    return socket.recv_multipart()


STORED = BlockStored([2**64 - 1, 7], None, [1, 2, 3, 4], 2)
REMOVED = BlockRemoved([7])


@pytest.fixture
def subscriber() -> Generator[zmq.Socket[bytes]]:
    with zmq.Context.instance().socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        yield socket


@pytest.fixture
def endpoints(tmp_path: Path) -> dict[str, str]:
    return {"endpoint": f"ipc://{tmp_path}/pub", "replay_endpoint": f"ipc://{tmp_path}/replay"}


def published(publisher: KVPublisher, subscriber: zmq.Socket[bytes], config: KVEventsConfig) -> list[list[bytes]]:
    """Two messages as a subscriber gets them, which connects when the publisher is there."""
    subscriber.connect(config.endpoint)
    subscriber.subscribe(config.topic)
    number = -1
    first: list[bytes] = []
    while not first:  # what is sent before the subscription has arrived is lost
        number += 1
        publisher.publish([STORED, REMOVED, AllBlocksCleared()])
        if subscriber.poll(50):
            first = subscriber.recv_multipart()
    while int.from_bytes(first[1], "big") < number:
        first = frames(subscriber)
    publisher.publish([REMOVED])
    return [first, frames(subscriber)]


def test_what_is_on_the_wire(subscriber: zmq.Socket[bytes], endpoints: dict[str, str]) -> None:
    config = KVEventsConfig(**endpoints, topic="kv@pod@model", buffer_steps=2)
    publisher = KVPublisher(config)
    first, second = published(publisher, subscriber, config)
    assert [len(first), first[0], len(first[1])] == [3, b"kv@pod@model", 8]
    number = int.from_bytes(first[1], "big")
    assert int.from_bytes(second[1], "big") == number + 1
    at, events, rank = msgspec.msgpack.decode(first[2])
    assert (isinstance(at, float), rank) == (True, 0)
    assert events == [
        {
            "type": "BlockStored",
            "block_hashes": [2**64 - 1, 7],
            "parent_block_hash": None,
            "token_ids": [1, 2, 3, 4],
            "block_size": 2,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        },
        {"type": "BlockRemoved", "block_hashes": [7], "medium": "GPU"},
        {"type": "AllBlocksCleared"},
    ]


def test_replays(subscriber: zmq.Socket[bytes], endpoints: dict[str, str]) -> None:
    config = KVEventsConfig(**endpoints, buffer_steps=2)
    publisher = KVPublisher(config)
    first, second = published(publisher, subscriber, config)
    number = int.from_bytes(first[1], "big")
    with zmq.Context.instance().socket(zmq.DEALER) as asking:
        asking.setsockopt(zmq.LINGER, 0)
        asking.connect(endpoints["replay_endpoint"])
        for start, wanted in ((0, [first, second]), (number + 1, [second]), (number + 2, [])):
            asking.send_multipart([b"", start.to_bytes(8, "big")])
            for message in wanted:
                assert frames(asking) == [b"", *message[1:]]
            assert frames(asking) == [b"", END, b""]
        asking.send_multipart([b"", b"nonsense, too long"])
        asking.send_multipart([b"", number.to_bytes(8, "big")])
        assert frames(asking) == [b"", *first[1:]]


def test_arrays_for_those_who_know_no_maps(subscriber: zmq.Socket[bytes], endpoints: dict[str, str]) -> None:
    config = KVEventsConfig(**endpoints, event_format="array")
    first, _ = published(KVPublisher(config), subscriber, config)
    _, events, _ = msgspec.msgpack.decode(first[2])
    assert events == [
        ["BlockStored", [2**64 - 1, 7], None, [1, 2, 3, 4], 2, None, "GPU", None],
        ["BlockRemoved", [7], "GPU"],
        ["AllBlocksCleared"],
    ]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "kv-events"]


def test_it_ends_when_nobody_holds_it(endpoints: dict[str, str]) -> None:
    before = threads()
    publisher = KVPublisher(KVEventsConfig(**endpoints))
    (thread,) = [thread for thread in threads() if thread not in before]
    log = KVEventLog(publisher.publish, 16)
    del publisher
    gc.collect()
    assert thread.is_alive()
    del log
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()
    KVPublisher(KVEventsConfig(**endpoints)).close()


def test_what_nobody_takes_is_lost_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, endpoints: dict[str, str]
) -> None:
    def idle(config: KVEventsConfig, sockets: tuple[zmq.Socket[bytes], ...], queue: object) -> None:
        for end in sockets:
            end.close()

    monkeypatch.setattr("xlaserve.engine.kv_publisher._work", idle)
    publisher = KVPublisher(KVEventsConfig(**endpoints, max_queue_size=2))
    for _ in range(5):
        publisher.publish([REMOVED])
    assert publisher._queue.qsize() == 2
    assert caplog.text.count("KV events are lost") == 1


def test_an_address_that_cannot_be_had(endpoints: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address} cannot be used: Address already in use"):
            KVPublisher(KVEventsConfig(endpoint=endpoints["endpoint"], replay_endpoint=address))
    with pytest.raises(ConfigError, match=r"nonsense:\*/x cannot be used"):
        KVPublisher(KVEventsConfig(endpoint="nonsense:*/x"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{}", KVEventsConfig()),
        ('{"enable_kv_cache_events": true, "publisher": "zmq", "topic": "kv"}', KVEventsConfig(topic="kv")),
        ('{"enable_kv_cache_events": false}', None),
        ('{"publisher": "null"}', None),
        ('{"replay_endpoint": null, "hwm": 5, "event_format": "array"}', KVEventsConfig(hwm=5, event_format="array")),
    ],
)
def test_options(text: str, wanted: Any) -> None:
    assert parse_kv_events(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ('{"endpoints": "x"}', "does not know endpoints; it knows endpoint, replay_endpoint"),
        ('{"endpoint": 5}', "kv_events.endpoint must be a string"),
        ('{"hwm": 0}', "kv_events.hwm must be a positive whole number"),
        ('{"hwm": true}', "kv_events.hwm must be a positive whole number"),
        ('{"publisher": "kafka"}', "publisher zmq or null"),
        ('{"event_format": "xml"}', "must be map or array"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_kv_events(text)


def test_they_need_the_prefix_cache() -> None:
    with pytest.raises(ConfigError, match="need enable_prefix_caching"):
        EngineConfig(kv_events=KVEventsConfig(), enable_prefix_caching=False)


def test_options_cross_to_the_engine_process() -> None:
    config = EngineConfig(kv_events=KVEventsConfig(topic="kv"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config


def test_without_the_extra() -> None:
    code = (
        "import sys; sys.modules['zmq'] = None\n"
        "from xlaserve.engine.kv_publisher import KVEventsConfig, KVPublisher\n"
        "try: KVPublisher(KVEventsConfig())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("ConfigError --kv-events-config needs the extra kv-events: pip install 'xlaserve[kv-events]'")


def test_an_engine_publishes(tiny_model: Callable[[str], Path], endpoints: dict[str, str]) -> None:
    from xlaserve import LLM, SamplingParams

    with LLM(str(tiny_model("llama3")), kv_events=KVEventsConfig(**endpoints), **TINY_ENGINE) as llm:
        llm.generate([list(range(5, 45))], SamplingParams(max_tokens=1, temperature=0))
        with zmq.Context.instance().socket(zmq.DEALER) as asking:
            asking.setsockopt(zmq.LINGER, 0)
            asking.connect(endpoints["replay_endpoint"])
            asking.send_multipart([b"", bytes(8)])
            _, number, payload = frames(asking)
    (event,) = msgspec.msgpack.decode(payload)[1]
    assert (number, event["type"], event["token_ids"], event["block_size"]) == (bytes(8), "BlockStored", list(range(5, 37)), 16)
