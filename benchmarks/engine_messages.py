"""What it costs to cross to the engine process and back: one finish message there, one step with a token for each sequence back.

    python benchmarks/engine_messages.py [--sequences 64] [--rounds 5000] [--way socket zmq]

Encoding, decoding and the event loop included, as the server does it (uvloop); the other process only answers. `zmq` needs pyzmq and is
there to compare with: the same messages over PAIR sockets on ipc://. Prints the median and the 99th percentile of a round trip.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from typing import Any

import msgspec
import uvloop

from xlaserve.engine.framing import FrameReader, FrameWriter
from xlaserve.engine.messages import Finish, FromEngine, Step, ToEngine, TokenEvent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--way", choices=("socket", "zmq"), nargs="+", default=["socket"])
    args = parser.parse_args()
    step = Step([TokenEvent(1_000_000 + i, 20_000 + i) for i in range(args.sequences)], 3, 700, 1_000_000, 9_000_000, None)
    for way in args.way:
        seconds = (over_socket if way == "socket" else over_zmq)(step, args.rounds)
        worst = statistics.quantiles(seconds, n=100)[98]
        size = len(FrameWriter().frame(step))
        print(
            f"{way:<7} {args.sequences} sequences, {size} bytes: median {statistics.median(seconds) * 1e6:.0f} us, p99 {worst * 1e6:.0f} us"
        )


def over_socket(step: Step, rounds: int) -> list[float]:
    """A socket pair, length-prefixed frames, an asyncio protocol: what the server does."""
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("fork").Process(target=_answer_socket, args=(theirs, ours, step), daemon=True)
    process.start()
    theirs.close()

    class Asking(asyncio.Protocol):
        def __init__(self) -> None:
            self.reader, self.writer = FrameReader[FromEngine](FromEngine), FrameWriter()
            self.seconds: list[float] = []
            self.done = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.ask()

        def ask(self) -> None:
            self.began = time.perf_counter()
            self.transport.write(self.writer.frame(Finish(7, "abort")))

        def data_received(self, data: bytes) -> None:
            for _ in self.reader.feed(data):
                self.seconds.append(time.perf_counter() - self.began)
                if len(self.seconds) == rounds:
                    self.done.set_result(self.seconds)
                else:
                    self.ask()

    async def run() -> list[float]:
        transport, asking = await asyncio.get_running_loop().create_unix_connection(Asking, sock=ours)
        seconds = await asking.done
        transport.abort()
        return seconds

    return uvloop.run(run())


def _answer_socket(theirs: socket.socket, ours: socket.socket, step: Step) -> None:
    ours.close()
    reader, writer = FrameReader[ToEngine](ToEngine), FrameWriter()
    while data := theirs.recv(1 << 16):
        for _ in reader.feed(data):
            theirs.sendall(writer.frame(step))


def over_zmq(step: Step, rounds: int) -> list[float]:
    """The same messages through pyzmq."""
    import zmq.asyncio

    with tempfile.TemporaryDirectory() as folder:
        address = f"ipc://{folder}/engine"
        process = multiprocessing.get_context("spawn").Process(target=_answer_zmq, args=(address, step), daemon=True)
        process.start()
        encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(FromEngine)

        async def run() -> list[float]:
            context = zmq.asyncio.Context()
            end = context.socket(zmq.PAIR)
            end.bind(address)
            seconds: list[float] = []
            for _ in range(rounds):
                began = time.perf_counter()
                await end.send(encoder.encode(Finish(7, "abort")), copy=False)
                decoder.decode(await end.recv())
                seconds.append(time.perf_counter() - began)
            context.destroy(linger=0)
            return seconds

        seconds = uvloop.run(run())
        process.terminate()
        return seconds


def _answer_zmq(address: str, step: Step) -> None:
    import zmq

    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(ToEngine)
    end = zmq.Context().socket(zmq.PAIR)
    end.connect(address)
    while os.getppid() != 1:
        decoder.decode(end.recv())
        end.send(encoder.encode(step), copy=False)


if __name__ == "__main__":
    main()
