"""What a client makes of a call that failed."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from edgekit.errors import AuthenticationError, EdgekitError, OverloadedError, UnreachableError
from edgekit.runtimes.protocol.status import ERROR_KEY, from_grpc


class _Failed:
    def __init__(self, code: grpc.StatusCode, details: str, kind: str = "") -> None:
        self._code, self._details, self._kind = code, details, kind

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ((ERROR_KEY, self._kind),) if self._kind else ()


def understood(code: grpc.StatusCode, details: str, kind: str = "") -> EdgekitError:
    return from_grpc(_Failed(code, details, kind), "grpc://edge:8102")


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:8102: Failed to connect to remote "
            "host: Connection refused",
            "connection refused, nothing listens there",
        ),
        (
            "errors resolving edge:8102: [field:hostname lookup error:address lookup failed for edge:8102: Domain name "
            "not found]",
            "no host of that name",
        ),
        ("DNS resolution failed for edge:8102: C-ares status is not ARES_SUCCESS", "no host of that name"),
        ("Socket closed", "the connection broke"),
        ("recvmsg:Connection reset by peer", "the connection broke"),
        ("the node is closing", "the node is closing"),
    ],
)
def test_a_broken_connection_is_told_in_our_words_and_a_node_in_its_own(details: str, words: str) -> None:
    error = understood(grpc.StatusCode.UNAVAILABLE, details)
    assert isinstance(error, UnreachableError)
    assert error.message == f"grpc://edge:8102: {words}"


def test_a_refused_certificate_keeps_what_the_library_says_of_it() -> None:
    details = "failed to connect to all addresses; last error: UNKNOWN: CERTIFICATE_VERIFY_FAILED: self-signed"
    error = understood(grpc.StatusCode.UNAVAILABLE, details)
    assert isinstance(error, AuthenticationError)
    assert "CERTIFICATE_VERIFY_FAILED" in error.message


def test_the_class_that_a_node_names_wins_over_its_status() -> None:
    error = understood(grpc.StatusCode.UNAVAILABLE, "its queue is full", "OverloadedError")
    assert isinstance(error, OverloadedError)
    assert error.message == "grpc://edge:8102: its queue is full"
