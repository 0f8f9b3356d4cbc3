"""KV events over ZeroMQ, in vLLM's wire format: a thread of the engine's process publishes, and replays what a subscriber has missed.

A message is three frames: the topic, a sequence number (8 bytes, big-endian) and a msgpack array `[time, events, 0]`, whose events are
maps with their `type`, as vLLM sends them since its change 42892 of June 2026, or arrays, as before. A REQ socket that sends a sequence
number to the replay endpoint gets what is kept from there on, and the number -1 at the end.
"""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections import deque
from dataclasses import dataclass, fields
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from xlaserve.errors import ConfigError
from xlaserve.paged.kv_events import KVEvent

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

END = (-1).to_bytes(8, "big", signed=True)
REPLAY_SECONDS = 0.05
"""How long a replay may wait while nothing else is published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEventsConfig:
    """Where KV events go. Names and defaults are vLLM's; `event_format` is ours.

    Args:
        endpoint: of the PUB socket: bound where it holds a `*` or is ipc:// or inproc://, else connected to.
        replay_endpoint: that the ROUTER socket for replays is bound to; None replays nothing.
        buffer_steps: messages kept for replays.
        hwm: messages that ZeroMQ keeps for a slow subscriber.
        max_queue_size: messages that wait for the thread; more are lost, which a gap in the sequence numbers shows.
        topic: first frame of each message.
        event_format: "map", or "array" for subscribers that know vLLM up to 0.22 only.

    Raises:
        ConfigError: a value is of the wrong kind or out of range.
    """

    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""
    event_format: Literal["map", "array"] = "map"

    def __post_init__(self) -> None:
        for name in ("endpoint", "replay_endpoint", "topic"):
            value: Any = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name == "replay_endpoint"):
                raise ConfigError(f"kv_events.{name} must be a string, got {value!r}.")
        for name in ("buffer_steps", "hwm", "max_queue_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"kv_events.{name} must be a positive whole number, got {value!r}.")
        if self.event_format not in ("map", "array"):
            raise ConfigError(f"kv_events.event_format must be map or array, got {self.event_format!r}.")


def parse_kv_events(text: str) -> KVEventsConfig | None:
    """A JSON object as vLLM's --kv-events-config takes it; None where it turns events off.

    Raises:
        ConfigError: it is no object, a name is unknown, or a value is wrong.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--kv-events-config is not JSON: {error}.") from error
    if not isinstance(options, dict):
        raise ConfigError('--kv-events-config must be a JSON object such as {"endpoint": "tcp://*:5557"}.')
    known = [field.name for field in fields(KVEventsConfig)]
    if unknown := [name for name in options if name not in (*known, "enable_kv_cache_events", "publisher")]:
        raise ConfigError(f"--kv-events-config does not know {', '.join(unknown)}; it knows {', '.join(known)}.")
    enabled, publisher = options.pop("enable_kv_cache_events", True), options.pop("publisher", "zmq")
    if type(enabled) is not bool or publisher not in ("zmq", "null"):
        raise ConfigError("--kv-events-config: enable_kv_cache_events must be true or false, and publisher zmq or null.")
    config = KVEventsConfig(**options)
    return config if enabled and publisher == "zmq" else None


class KVPublisher:
    """Publishes as long as somebody holds it.

    Args:
        config: where to.

    Raises:
        ConfigError: the extra `kv-events` is missing, or an endpoint cannot be had.
    """

    def __init__(self, config: KVEventsConfig) -> None:
        self._queue: SimpleQueue[_Message | None] = SimpleQueue()
        self._most = config.max_queue_size
        self._sequence = 0
        self._lost = False
        sockets = _open(config)
        # The thread does not hold the publisher, so that it ends when nobody does.
        Thread(target=_work, args=(config, sockets, self._queue), name="kv-events", daemon=True).start()
        self.close = weakref.finalize(self, self._queue.put, None)

    def publish(self, events: list[KVEvent]) -> None:
        """Send events, in a while. Never blocks."""
        number, self._sequence = self._sequence, self._sequence + 1
        if self._queue.qsize() < self._most:
            self._queue.put((number, time.time(), events))
        elif not self._lost:
            self._lost = True
            log.warning("KV events are lost: %d messages wait to be published", self._most)


_Message = tuple[int, float, list[KVEvent]]
_Sockets = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes] | None"]


def _open(config: KVEventsConfig) -> _Sockets:
    try:
        import zmq
    except ImportError as error:
        raise ConfigError(f"--kv-events-config needs the extra kv-events: pip install 'xlaserve[kv-events]' ({error}).") from error
    context = zmq.Context.instance()
    publisher = context.socket(zmq.PUB)
    publisher.set_hwm(config.hwm)
    publisher.setsockopt(zmq.LINGER, 0)
    replayer, endpoint = None, config.endpoint
    try:
        bound = "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))
        (publisher.bind if bound else publisher.connect)(endpoint)
        if config.replay_endpoint is not None:
            replayer, endpoint = context.socket(zmq.ROUTER), config.replay_endpoint
            replayer.setsockopt(zmq.LINGER, 0)
            replayer.bind(endpoint)
    except zmq.ZMQError as error:
        publisher.close()
        if replayer is not None:
            replayer.close()
        raise ConfigError(f"--kv-events-config: {endpoint} cannot be used: {error}.") from error
    return publisher, replayer


def _work(config: KVEventsConfig, sockets: _Sockets, queue: SimpleQueue[_Message | None]) -> None:
    publisher, replayer = sockets
    encode, topic = msgspec.msgpack.Encoder().encode, config.topic.encode()
    kept: deque[tuple[bytes, bytes]] = deque(maxlen=config.buffer_steps)
    try:
        while True:
            if replayer is not None and replayer.poll(0):
                _replay(replayer, kept)
            try:
                message = queue.get(timeout=None if replayer is None else REPLAY_SECONDS)
            except Empty:
                continue
            if message is None:
                return
            number, at, events = message
            listed = events if config.event_format == "map" else [_array(event) for event in events]
            frames = (number.to_bytes(8, "big"), encode((at, listed, 0)))
            publisher.send_multipart((topic, *frames))
            kept.append(frames)
    except Exception:
        log.exception("KV events are published no more")
    finally:
        publisher.close()
        if replayer is not None:
            replayer.close()


def _replay(replayer: zmq.Socket[bytes], kept: deque[tuple[bytes, bytes]]) -> None:
    client, *rest = replayer.recv_multipart()
    if len(rest) != 2 or len(rest[1]) != 8:
        log.warning("A request for a replay of KV events is not a sequence number of 8 bytes")
        return
    for number, payload in kept:
        if number >= rest[1]:
            replayer.send_multipart((client, b"", number, payload))
    replayer.send_multipart((client, b"", END, b""))


def _array(event: KVEvent) -> tuple[Any, ...]:
    return (type(event).__name__, *msgspec.structs.astuple(event))
