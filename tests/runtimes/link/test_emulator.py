from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgekit.errors import NodeError, UsageError
from edgekit.planning.link import Link
from edgekit.planning.traces import Conditions, Trace
from edgekit.runtimes.link.emulator import LinkEmulator, parse_address
from samples.benchmarks.tcp_server import ANY, tcp_server
from samples.benchmarks.tcp_server import dial as connect
from samples.benchmarks.tcp_server import echo as send_back

FREE = Link(1000.0)


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it gets, and ends its side when the client has."""
    with tcp_server(send_back, 20) as address:
        yield address


def dial(emulator: LinkEmulator) -> socket.socket:
    return connect((emulator.host, emulator.port), 20)


def receive(connection: socket.socket, size_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < size_bytes:
        more = connection.recv(min(1 << 16, size_bytes - len(data)))
        if not more:
            break
        data += more
    return bytes(data)


def there_and_back(connection: socket.socket, data: bytes) -> tuple[bytes, float]:
    """(what came back, seconds)."""
    start = time.perf_counter()
    sender = threading.Thread(target=connection.sendall, args=(data,), daemon=True)
    sender.start()
    back = receive(connection, len(data))
    seconds = time.perf_counter() - start
    sender.join(20)
    return back, seconds


def noise(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def test_every_byte_comes_back_in_order_over_a_bad_link(echo: tuple[str, int]) -> None:
    data = noise(200_000)
    with LinkEmulator(ANY, echo, Conditions(80.0, 4.0, jitter_ms=2.0, loss=0.02)) as emulator:
        with dial(emulator) as connection:
            assert there_and_back(connection, data)[0] == data
        state = emulator.state()
    assert (state.up_bytes, state.down_bytes) == (len(data), len(data))


@pytest.mark.parametrize(("link", "size_bytes"), [
    (Link(10.0, 40.0), 8),
    (Link(10.0, 40.0), 150_000),
    (Link(2.0, 0.0), 20_000),
    (Link(50.0, 10.0, 0.5), 50_000),
])  # fmt: skip
def test_nothing_is_faster_than_the_link_allows(echo: tuple[str, int], link: Link, size_bytes: int) -> None:
    with LinkEmulator(ANY, echo, link) as emulator, dial(emulator) as connection:
        back, seconds = there_and_back(connection, noise(size_bytes))
    assert back == noise(size_bytes)
    # The way back overlaps with the way there but for its last packet and its delay.
    assert 1000 * seconds >= link.one_way_ms(size_bytes) + link.rtt_ms / 2 - 0.01


def test_connections_share_the_bucket(echo: tuple[str, int]) -> None:
    count, size_bytes, link = 4, 25_000, Link(8.0)
    with LinkEmulator(ANY, echo, link) as emulator:
        connections = [dial(emulator) for _ in range(count)]
        start = time.perf_counter()
        threads = [
            threading.Thread(target=there_and_back, args=(connection, noise(size_bytes)), daemon=True)
            for connection in connections
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        seconds = time.perf_counter() - start
        assert emulator.state().up_bytes == count * size_bytes
        for connection in connections:
            connection.close()
    assert 1000 * seconds >= link.one_way_ms(count * size_bytes) - 0.01


def test_a_new_connection_costs_a_round_trip(echo: tuple[str, int]) -> None:
    with LinkEmulator(ANY, echo, Link(1000.0, 60.0)) as emulator:
        start = time.perf_counter()
        with dial(emulator) as connection:
            there_and_back(connection, b"x")
        assert time.perf_counter() - start >= 0.12


def test_an_outage_holds_bytes_up_and_loses_none(echo: tuple[str, int]) -> None:
    up, down = Conditions(100.0), Conditions(100.0, up=False)
    with LinkEmulator(ANY, echo, up) as emulator, dial(emulator) as connection:
        there_and_back(connection, b"x")
        before_s = emulator.state().elapsed_s
        emulator.set(Trace("gap", (0.0, 0.1, 1.2), (up, down, up), 5.0))
        for _ in range(200):
            if not emulator.state().is_up:
                break
            time.sleep(0.01)
        assert there_and_back(connection, b"held")[0] == b"held"
        assert emulator.state().elapsed_s - before_s >= 1.2


def test_an_outage_past_the_limit_breaks_connections(echo: tuple[str, int]) -> None:
    with LinkEmulator(ANY, echo, FREE, outage_limit_s=0.1) as emulator, dial(emulator) as connection:
        there_and_back(connection, b"x")
        emulator.cut()
        with pytest.raises(ConnectionError):
            connection.sendall(b"y")
            if not receive(connection, 1):
                raise ConnectionResetError("ended")


def test_a_cut_link_moves_nothing_until_it_is_restored(echo: tuple[str, int]) -> None:
    with LinkEmulator(ANY, echo, FREE) as emulator, dial(emulator) as connection:
        there_and_back(connection, b"x")
        emulator.cut()
        connection.sendall(b"waiting")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        emulator.restore()
        connection.settimeout(20)
        assert receive(connection, 7) == b"waiting"


def test_a_cut_that_closes_ends_old_and_new_connections(echo: tuple[str, int]) -> None:
    with LinkEmulator(ANY, echo, FREE) as emulator, dial(emulator) as connection:
        there_and_back(connection, b"x")
        emulator.cut(close=True)
        assert _is_broken(connection)
        with dial(emulator) as late:
            assert _is_broken(late)
        emulator.restore()
        with dial(emulator) as again:
            assert there_and_back(again, b"back")[0] == b"back"


def _is_broken(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_a_rate_that_changes_counts_for_what_is_under_way(echo: tuple[str, int]) -> None:
    """100 kB at 0.1 Mbit/s would take 8 s; faster from the moment of `set`, although a slice was being sent."""
    with LinkEmulator(ANY, echo, Link(0.1)) as emulator, dial(emulator) as connection:
        threading.Timer(0.1, emulator.set, (FREE,)).start()
        data = noise(100_000)
        back, seconds = there_and_back(connection, data)
    assert back == data
    assert seconds >= 0.1


def test_flip_damages_one_byte_of_the_next_slice(echo: tuple[str, int]) -> None:
    with LinkEmulator(ANY, echo, FREE) as emulator, dial(emulator) as connection:
        emulator.flip("up")
        sent = noise(1000)
        back, _ = there_and_back(connection, sent)
        assert sum(a != b for a, b in zip(sent, back, strict=True)) == 1
        assert there_and_back(connection, sent)[0] == sent
        emulator.flip("down", 1)
        assert there_and_back(connection, sent)[0] != sent


def test_a_sender_waits_when_the_receiver_does_not_read() -> None:
    with (
        socket.create_server(ANY) as listener,
        LinkEmulator(ANY, listener.getsockname(), FREE) as emulator,
        dial(emulator) as connection,
    ):
        far, _ = listener.accept()
        connection.settimeout(0.3)
        sent, chunk = 0, bytes(1 << 20)
        with pytest.raises(TimeoutError):
            while sent < 1 << 28:
                sent += connection.send(chunk)
        assert sent < 1 << 26, "what is buffered must be bounded"
        connection.shutdown(socket.SHUT_WR)
        with closing(far):
            far.settimeout(20)
            assert _drain(far) == sent


def _drain(connection: socket.socket) -> int:
    size_bytes = 0
    while data := connection.recv(1 << 20):
        size_bytes += len(data)
    return size_bytes


def test_the_end_of_one_direction_leaves_the_other_open() -> None:
    data = noise(50_000)
    with (
        socket.create_server(ANY) as listener,
        LinkEmulator(ANY, listener.getsockname(), Link(100.0, 5.0)) as emulator,
        dial(emulator) as connection,
    ):
        far, _ = listener.accept()
        with closing(far):
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            whole = b"".join(iter(lambda: far.recv(1 << 16), b""))
            far.sendall(hashlib.sha256(whole).digest())
        assert receive(connection, 64) == hashlib.sha256(data).digest()


def test_nobody_listening_behind_the_link_ends_the_connection() -> None:
    with socket.create_server(ANY) as listener:
        gone = listener.getsockname()
    with LinkEmulator(ANY, gone, FREE) as emulator:
        with dial(emulator) as connection:
            assert _is_broken(connection)
        assert emulator.state().refused == 1


def test_a_port_in_use_is_a_node_error(echo: tuple[str, int]) -> None:
    with pytest.raises(NodeError, match="cannot listen on"):
        LinkEmulator(echo, echo, FREE).__enter__()


def test_closing_ends_the_thread_and_frees_the_port(echo: tuple[str, int]) -> None:
    before = threading.active_count()
    with LinkEmulator(ANY, echo, FREE) as emulator:
        connection = dial(emulator)
        there_and_back(connection, b"x")
    assert _is_broken(connection)
    connection.close()
    assert not any(thread.name == "edgekit-link" for thread in threading.enumerate())
    assert threading.active_count() <= before + 1  # the echo server's own, still ending
    emulator.close()
    with pytest.raises(NodeError, match="not running"):
        emulator.state()
    with LinkEmulator((emulator.host, emulator.port), echo, FREE):
        pass


@pytest.mark.parametrize("text", ["9000", ":9000", "host:", "host:x", "host:70000", "host:²"])
def test_an_address_that_is_none_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(("text", "address"), [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80))])
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address
