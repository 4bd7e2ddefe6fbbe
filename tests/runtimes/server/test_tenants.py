"""The file of tenants, the tokens that they show, and a quota that is met over both protocols."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from edgekit.errors import AuthenticationError, OverloadedError, UsageError
from edgekit.runtimes.protocol.calls import InferCall
from edgekit.runtimes.protocol.client import ClientOptions, NodeClient
from edgekit.runtimes.server import Node, Security, read_tenants
from edgekit.runtimes.server.schedule import BatchOptions, Schedule, Tenant, Ticket
from edgekit.runtimes.server.tenants import Guest

ROW = InferCall("net.tail", {"shifted": np.zeros((1, 6), np.float32)})


def written(folder: Path, text: str, **tokens: str) -> Path:
    for name, token in tokens.items():
        (folder / f"{name}.token").write_text(token)
    path = folder / "tenants.toml"
    path.write_text(text)
    return path


def test_a_file_names_tenants_with_defaults_that_bound_nothing(tmp_path: Path) -> None:
    text = '[a]\ntoken_file = "a.token"\n[b]\ntoken_file = "b.token"\nshare = 3\nrows_per_s = 5\nburst_rows = 9\n'
    assert read_tenants(written(tmp_path, text, a="one", b="two")) == (
        Guest(Tenant("a"), "one"),
        Guest(Tenant("b", 3, 5, 9), "two"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no tenants"),
        ("[a", "not TOML"),
        ("share = 1", "outside of a table"),
        ("[a]", "no token_file"),
        ('[a]\ntoken_file = "a.token"\nrate = 1', "unknown key of the tenant a 'rate'"),
        ('[a]\ntoken_file = "a.token"\nshare = 0', "share of the tenant a is 0"),
        ('[a]\ntoken_file = "a.token"\nshare = 1e308', r"share of the tenant a is 1e\+308, .* from 0.001 to 1000"),
        ('[a]\ntoken_file = "a.token"\nshare = 1e-308', "share of the tenant a is 1e-308, .* from 0.001 to 1000"),
        ('[a]\ntoken_file = "a.token"\nshare = nan', "share of the tenant a is nan"),
        ('[a]\ntoken_file = "a.token"\nrows_per_s = 1e308', r"rows_per_s of the tenant a is 1e\+308, .* to 1e\+09"),
        ('[a]\ntoken_file = "a.token"\nrows_per_s = 1\nburst_rows = 1e308', "burst_rows of the tenant a is"),
        ('[a]\ntoken_file = "a.token"\nrows_per_s = true', "rows_per_s of the tenant a is True"),
        ('[a]\ntoken_file = "a.token"\nburst_rows = 3', "burst_rows without rows_per_s"),
        ('[a]\ntoken_file = "missing.token"', "cannot read the token file"),
        ('[a]\ntoken_file = "a.token"\n[b]\ntoken_file = "a.token"', "have one token"),
    ],
)
def test_a_file_that_cannot_be_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_tenants(written(tmp_path, text, a="one"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the tenants"):
        read_tenants(tmp_path / "none.toml")


def test_each_token_is_its_own_tenant_and_a_strange_one_none() -> None:
    security = Security("owner", guests=(Guest(Tenant("a"), "one"), Guest(Tenant("b"), "two")))
    assert [security.check(f"Bearer {token}") for token in ("owner", "one", "two")] == ["", "a", "b"]
    for header in ("Bearer three", "Bearer ", "one", None):
        with pytest.raises(AuthenticationError):
            security.check(header)


def test_a_tenant_with_the_owners_token_is_refused_at_the_start() -> None:
    """It would be the owner: without its quota, and allowed to exchange models."""
    with pytest.raises(
        UsageError, match=r"the tenant b has the owner's token \(--token-file\), allowed one of its own"
    ):
        Security("two", guests=(Guest(Tenant("a"), "one"), Guest(Tenant("b"), "two")))


def test_shares_as_far_apart_as_is_allowed_serve_both(tmp_path: Path) -> None:
    text = '[a]\ntoken_file = "a.token"\nshare = 1000\n[b]\ntoken_file = "b.token"\nshare = 0.001\n'
    tenants = [guest.tenant for guest in read_tenants(written(tmp_path, text, a="one", b="two"))]
    schedule = Schedule("m", BatchOptions(max_batch=4096, queue=64), tenants=tenants)
    for tenant in ("b", "a", "a"):
        schedule.admit([Ticket(4096, tenant=tenant)], 0.0)
    served = []
    while (batch := schedule.take(0.0)) is not None:
        assert math.isfinite(batch.tickets[0].start_tag)
        served.append(batch.tickets[0].tenant)
        schedule.finish(batch, 0.1)
    assert sorted(served) == ["a", "a", "b"]


def test_without_an_owner_the_tenants_tokens_are_wanted() -> None:
    security = Security(guests=(Guest(Tenant("a"), "one"),))
    assert security.check("bearer one") == "a"
    with pytest.raises(AuthenticationError):
        security.check("Bearer ")


def test_a_tenant_over_its_quota_is_told_so_and_the_owner_is_not(
    split_bundle: Path, serve: Callable[..., Node]
) -> None:
    guests = (Guest(Tenant("a", rows_per_s=0.001, burst_rows=2), "one"),)
    node = serve(split_bundle, tier="cloud", port=0, security=Security("owner", guests=guests))
    with (
        NodeClient(node.grpc_url, ClientOptions("one")) as guest,
        NodeClient(node.grpc_url, ClientOptions("owner")) as owner,
    ):
        for _ in range(2):
            guest.infer(ROW)
        with pytest.raises(OverloadedError, match="the tenant 'a' is over its quota"):
            guest.infer(ROW)
        owner.infer(ROW)
    body = {"inputs": [{"name": "shifted", "shape": [1, 6], "datatype": "FP32", "data": [0.0] * 6}]}
    url = f"{node.rest_url}/v2/models/net.tail/infer"
    refused = httpx.post(url, json=body, headers={"authorization": "Bearer one"})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 1
    assert httpx.post(url, json=body, headers={"authorization": "Bearer owner"}).status_code == 200
