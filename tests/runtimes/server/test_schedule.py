"""The policy in virtual time: bounds, order, fairness, quotas, deadlines, levels, and no ticket lost."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.runtimes.server.schedule import (
    ANY,
    Batch,
    BatchOptions,
    LateError,
    QueueFullError,
    QuotaError,
    Schedule,
    Tenant,
    Ticket,
)

FIXED_S, ROW_S = 0.002, 0.001


def schedule(*, levels: int = 1, tenants: Sequence[Tenant] = (), known: bool = True, **options: float) -> Schedule:
    """Level l runs 4^l times as fast as the model: 2 ms and 1 ms a row."""
    made = Schedule("m", BatchOptions(**options), levels=levels, tenants=tenants)  # type: ignore[arg-type]
    for level, pace in enumerate(made.paces if known else ()):
        for _ in range(60):
            for rows in (1, 16):
                pace.learn(rows, (FIXED_S + rows * ROW_S) / 4**level)
    return made


def take(made: Schedule, now: float = 0.0) -> Batch:
    batch = made.take(now)
    assert batch is not None
    return batch


def drain(made: Schedule, now: float = 0.0) -> list[Batch]:
    """Everything that waits, one batch after another."""
    batches = []
    while (batch := made.take(now)) is not None:
        batches.append(batch)
        made.finish(batch, now + batch.expected_s)
        now += batch.expected_s
    return batches


def test_one_tenant_is_served_first_come_first_served_in_full_batches() -> None:
    made = schedule(max_batch=4)
    tickets = [Ticket(1) for _ in range(10)]
    for ticket in tickets:
        made.admit([ticket], 0.0)
    assert [batch.tickets for batch in drain(made)] == [tickets[:4], tickets[4:8], tickets[8:]]
    assert made.waiting == 0 and made.take(9.0) is None and made.due_s() == math.inf


def test_kinds_do_not_mix_and_the_oldest_goes_first() -> None:
    made = schedule(max_batch=8)
    tickets = [Ticket(1, kind=kind) for kind in "abab"]
    for ticket in tickets:
        made.admit([ticket], 0.0)
    assert [batch.tickets for batch in drain(made)] == [tickets[::2], tickets[1::2]]


def test_several_workers_run_side_by_side_and_no_more() -> None:
    made = schedule(max_batch=1, workers=2)
    for _ in range(3):
        made.admit([Ticket(1)], 0.0)
    first, second = take(made), take(made)
    assert made.take(0.0) is None and not made.has_room
    made.finish(first, 1.0)
    assert take(made, 1.0).rows == 1 and second in made.running


def test_the_queue_is_bounded_and_a_free_worker_needs_no_place() -> None:
    made = schedule(max_batch=1, queue=2)
    made.admit([Ticket(1)], 0.0)
    take(made)
    made.admit([Ticket(1), Ticket(1)], 0.0)
    with pytest.raises(QueueFullError, match="2 wait, allowed 2") as caught:
        made.admit([Ticket(1)], 0.0)
    assert caught.value.retry_after_s == pytest.approx(2 * (FIXED_S + ROW_S), rel=0.01)
    assert made.waiting == 2


def test_a_delay_is_waited_for_unless_the_batch_is_full_or_nobody_more_will_come() -> None:
    made = schedule(max_batch=2, max_delay_ms=10)
    made.admit([Ticket(1)], 5.0)
    assert made.take(5.0) is None and made.due_s() == pytest.approx(5.01)
    assert take(made, 5.011).rows == 1
    made.running.clear()
    for _ in range(2):
        made.admit([Ticket(1)], 6.0)
    assert take(made, 6.0).rows == 2
    made.running.clear()
    made.admit([Ticket(1)], 7.0)
    made.in_a_hurry = True
    assert take(made, 7.0).rows == 1


def test_who_would_be_late_is_refused_at_once_and_who_would_not_is_let_in() -> None:
    made = schedule(max_batch=4, queue=1000)
    for _ in range(41):
        made.admit([Ticket(1)], 0.0)
    take(made)  # of four rows; 37 wait, in ten more batches of 6 ms
    with pytest.raises(LateError, match=r"would answer in \d\d ms, the deadline is in 50 ms"):
        made.admit([Ticket(1, deadline_s=0.050)], 0.0)
    made.admit([Ticket(1, deadline_s=0.100)], 0.0)
    assert made.waiting == 38


def test_an_idle_model_tries_what_it_may_not_manage() -> None:
    made = schedule()
    made.admit([Ticket(1, deadline_s=0.001)], 0.0)
    assert take(made).rows == 1
    with pytest.raises(LateError):
        made.admit([Ticket(1, deadline_s=0.001)], 0.0)


def test_a_deadline_bounds_the_batch_to_half_of_its_time() -> None:
    made = schedule(max_batch=16)
    made.admit([Ticket(1)], 0.0)
    running = take(made)
    for _ in range(12):
        made.admit([Ticket(1, deadline_s=0.020)], 0.0) if made.waiting < 8 else None
    made.finish(running, 0.003)
    assert take(made, 0.003).rows == 8  # 2 + 8 ms are half of the 20


def test_what_is_past_its_deadline_does_not_run() -> None:
    made = schedule(max_batch=4)
    late, due = Ticket(1, deadline_s=0.1), Ticket(1)
    made.admit([late], 0.0)
    made.admit([due], 0.0)
    batch = take(made, 0.2)
    assert batch.late == [late] and batch.tickets == [due] and batch.rows == 1


def test_coarser_levels_answer_before_anybody_is_refused() -> None:
    made = schedule(levels=2, max_batch=4, queue=1000)
    levels = []
    made.admit([Ticket(1)], 0.0)
    running = take(made)
    for _ in range(60):
        ticket = Ticket(1, deadline_s=0.025)
        try:
            made.admit([ticket], 0.0)
        except LateError:
            break
        levels.append(ticket.level)
    else:
        raise AssertionError("nobody was refused")
    assert levels == sorted(levels) and set(levels) == {0, 1}
    made.finish(running, 0.003)
    assert [batch.level for batch in drain(made, 0.003)] == sorted(levels[::4])


def test_without_deadlines_levels_follow_the_queue() -> None:
    made = schedule(levels=2, queue=10)
    tickets = [Ticket(1) for _ in range(11)]
    made.admit([tickets[0]], 0.0)
    take(made)
    for ticket in tickets[1:]:
        made.admit([ticket], 0.0)
    assert [ticket.level for ticket in tickets[1:]] == [0] * 5 + [1] * 5


def test_tenants_get_rows_in_proportion_to_their_shares() -> None:
    made = schedule(max_batch=1, queue=1000, tenants=[Tenant("a", share=3), Tenant("b", share=1)])
    for _ in range(60):
        made.admit([Ticket(1, tenant="b")], 0.0)
    for _ in range(60):
        made.admit([Ticket(1, tenant="a")], 0.0)
    served = Counter(batch.tickets[0].tenant for batch in drain(made)[:40])
    assert served["a"] == pytest.approx(30, abs=1)


def test_a_tenant_cannot_take_the_places_of_another() -> None:
    made = schedule(max_batch=1, queue=10, tenants=[Tenant("a"), Tenant("b")])
    made.admit([Ticket(1, tenant="a")], 0.0)
    take(made)
    for _ in range(5):
        made.admit([Ticket(1, tenant="a")], 0.0)
    with pytest.raises(QueueFullError, match="for the tenant 'a'"):
        made.admit([Ticket(1, tenant="a")], 0.0)
    made.admit([Ticket(1, tenant="b")], 0.0)


def test_a_late_tenant_is_not_expected_behind_the_whole_queue_of_another() -> None:
    made = schedule(max_batch=1, queue=1000, tenants=[Tenant("flood"), Tenant("calm")])
    for _ in range(100):
        made.admit([Ticket(1, tenant="flood")], 0.0)
    take(made)
    with pytest.raises(LateError):
        made.admit([Ticket(1, tenant="flood", deadline_s=0.1)], 0.0)
    made.admit([Ticket(1, tenant="calm", deadline_s=0.1)], 0.0)


def test_a_quota_refuses_says_for_how_long_and_refills() -> None:
    made = schedule(queue=1000, tenants=[Tenant("a", rows_per_s=10, burst_rows=5)])
    made.admit([Ticket(5, tenant="a")], 0.0)
    with pytest.raises(QuotaError, match="quota of 10 rows a second") as caught:
        made.admit([Ticket(2, tenant="a")], 0.0)
    assert caught.value.retry_after_s == pytest.approx(0.2)
    made.admit([Ticket(2, tenant="a")], 0.2)
    made.admit([Ticket(9, tenant="")], 0.2)


def test_a_refused_request_does_not_use_up_the_quota() -> None:
    made = schedule(queue=1, max_batch=1, tenants=[Tenant("a", rows_per_s=1, burst_rows=3)])
    made.admit([Ticket(1, tenant="a")], 0.0)
    take(made)
    made.admit([Ticket(1, tenant="a")], 0.0)
    with pytest.raises(QueueFullError):
        made.admit([Ticket(1, tenant="a")], 0.0)
    drain_one = made.running[0]
    made.finish(drain_one, 0.0)
    take(made)
    made.admit([Ticket(1, tenant="a")], 0.0)


ARRIVALS = st.lists(
    st.tuples(
        st.floats(0, 0.02),
        st.integers(1, 4),
        st.sampled_from("ab"),
        st.sampled_from(["", "x", "y"]),
        st.one_of(st.just(math.inf), st.floats(0.001, 0.2)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ARRIVALS, st.integers(1, 3), st.sampled_from([0.0, 3.0]))
def test_every_ticket_is_run_dropped_late_or_refused_exactly_once(
    arrivals: list[tuple[float, int, str, str, float]], workers: int, delay_ms: float
) -> None:
    made = schedule(levels=2, max_batch=4, queue=12, workers=workers, max_delay_ms=delay_ms, tenants=[Tenant("x", 2)])
    now, refused, let_in, seen = 0.0, 0, [], []
    ends: list[tuple[float, Batch]] = []

    def proceed(until: float) -> None:
        nonlocal now
        while True:
            due = max(now, made.due_s()) if made.has_room else math.inf
            end = min((at for at, _ in ends), default=math.inf)
            if min(due, end) > until or min(due, end) == math.inf:
                break
            now = min(due, end)
            for at, batch in [pair for pair in ends if pair[0] <= now]:
                ends.remove((at, batch))
                made.finish(batch, now, learn=bool(batch.tickets))
            while (batch := made.take(now)) is not None:
                assert batch.rows <= 4 or len(batch.tickets) == 1
                assert len({ticket.kind for ticket in batch.tickets}) <= 1
                assert all(ticket.deadline_s > now for ticket in batch.tickets)
                assert all(ticket.deadline_s <= now for ticket in batch.late)
                seen.extend([*batch.tickets, *batch.late])
                ends.append((now + batch.expected_s, batch))
        now = max(now, until) if until < math.inf else now

    for gap, rows, kind, tenant, left in arrivals:
        proceed(now + gap)
        ticket = Ticket(rows, kind, now + left, tenant)
        try:
            made.admit([ticket], now)
            let_in.append(ticket)
        except (QueueFullError, LateError):
            refused += 1
        assert made.waiting <= 12 + workers
    proceed(math.inf)
    assert made.waiting == 0 and not made.running
    assert Counter(map(id, seen)) == Counter(map(id, let_in))
    assert len(let_in) + refused == len(arrivals)


def test_kinds_that_cost_more_are_expected_to() -> None:
    made = schedule(max_batch=4, queue=1000)
    for kind, seconds in (("short", 0.004), ("long", 0.080)) * 12:
        made.admit([Ticket(1, kind)], 0.0)
        made.finish(take(made), seconds)
    assert made.pace("short", 0).seconds(1) == pytest.approx(0.004, rel=0.1)
    assert made.pace("long", 0).seconds(1) == pytest.approx(0.080, rel=0.1)
    made.admit([Ticket(1, "long")], 0.0)
    take(made)
    with pytest.raises(LateError):
        made.admit([Ticket(1, "short", deadline_s=0.060)], 0.0)


def coming(tenant: str = "", deadline_s: float = math.inf) -> list[Ticket]:
    return [Ticket(1, ANY, deadline_s, tenant)]


def test_what_would_be_refused_is_refused_before_it_is_made_ready_and_costs_no_quota() -> None:
    made = schedule(max_batch=1, queue=1, tenants=[Tenant("a", rows_per_s=1, burst_rows=2)])
    made.admit([Ticket(1, tenant="a")], 0.0)
    take(made)
    for _ in range(9):
        made.expect(coming("a"), 0.0)
        made.came(coming("a"))
    made.admit([Ticket(1, tenant="a")], 0.0)
    with pytest.raises(QueueFullError):
        made.expect(coming("a"), 0.0)
    assert (made.waiting, made.coming) == (1, 0)


def test_what_is_made_ready_holds_its_place_against_others_that_come_and_has_it_when_it_is() -> None:
    made = schedule(max_batch=1, queue=2, tenants=[Tenant("a"), Tenant("b")])
    made.admit([Ticket(1)], 0.0)
    take(made)
    for tenant in ("a", "b"):
        made.expect(coming(tenant), 0.0)
    for tenant in ("a", ""):
        with pytest.raises(QueueFullError):
            made.expect(coming(tenant), 0.0)
    for tenant in ("a", "b"):
        made.came(coming(tenant))
        made.admit([Ticket(1, tenant=tenant)], 0.0)
    assert (made.waiting, made.coming) == (2, 0)


def test_levels_follow_what_is_made_ready_too() -> None:
    """Where decoding takes longer than the model its queue never fills, however many are inside."""
    made = schedule(levels=2, queue=10)
    made.admit([Ticket(1)], 0.0)
    running = take(made)
    for _ in range(5):
        made.expect(coming(), 0.0)
    made.finish(running, 0.01)
    made.came(coming())
    fine, coarse = Ticket(1), Ticket(1)
    made.admit([fine], 0.02)
    made.expect(coming(), 0.02)
    made.admit([coarse], 0.02)
    assert (fine.level, coarse.level) == (0, 1)


def test_what_is_not_ready_is_thought_to_join_whoever_waits() -> None:
    """As it does when it is admitted: else it would be refused where it is not late."""
    made = schedule(max_batch=8)
    made.admit([Ticket(1, "kind")], 0.0)
    take(made)
    made.admit([Ticket(1, "kind")], 0.0)
    deadline_s = min(ms / 1e3 for ms in range(1, 200) if is_taken(made, Ticket(1, "kind", ms / 1e3)))
    made.expect(coming(deadline_s=deadline_s), 0.0)
    with pytest.raises(LateError):
        made.expect(coming(deadline_s=0.8 * deadline_s), 0.0)


def is_taken(made: Schedule, ticket: Ticket) -> bool:
    """`made` stays as it is."""
    try:
        copy.deepcopy(made).admit([ticket], 0.0)
    except LateError:
        return False
    return True
