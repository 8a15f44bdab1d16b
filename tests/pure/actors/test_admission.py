"""A queue that stands is kept short; a burst is let in, and a stuck shard keeps nobody else out."""

from engine.actors.admission import Admission, Queue
from engine.actors.settings import ActorSettings

LOOK_S = 0.1


def a_queue():
    return Queue(most=2_000, least=100, queue_s=0.25)


def run(queue, seconds, *, offered_per_s, begun_per_s, now=0.0, commit_s=0.01):
    """Both in steps of a hundredth of a second; returns the time and how many were refused."""
    refused = 0
    come = gone = 0.0
    for step in range(1, round(seconds * 100) + 1):
        come += offered_per_s / 100
        gone += begun_per_s / 100
        while come >= 1:
            come -= 1
            if queue.length < queue.limit:
                queue.enter()
            else:
                refused += 1
        while gone >= 1:
            gone -= 1
            if queue.length:
                queue.leave()
        if step % 10 == 0:
            queue.look(now + step / 100, commit_s)
    return now + seconds, refused


def test_what_is_worked_off_is_never_refused():
    queue = a_queue()
    assert run(queue, 60, offered_per_s=900, begun_per_s=1_000)[1] == 0
    assert queue.limit == 2_000


def test_a_burst_is_let_in_and_worked_off():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=100, begun_per_s=1_000)
    queue.length += 1_900
    # It takes two seconds; those that come meanwhile are too many for a while, and then no more.
    now, _ = run(queue, 3, offered_per_s=100, begun_per_s=1_000, now=now)
    assert queue.length < 10
    now, refused = run(queue, 10, offered_per_s=900, begun_per_s=1_000, now=now)
    assert refused == 0
    assert queue.limit == 2_000


def test_a_queue_that_stands_holds_what_is_begun_in_a_moment():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=1_000)
    assert 200 <= queue.limit <= 300
    assert queue.length <= queue.limit
    now, refused = run(queue, 10, offered_per_s=3_000, begun_per_s=1_000, now=now)
    assert refused == 20_000  # Nobody is kept out for whom there would have been time.


def test_a_slower_engine_lets_fewer_in_but_never_less_than_the_least():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=2_000)
    assert 450 <= queue.limit <= 550
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=800, now=now)
    assert 150 <= queue.limit <= 250
    run(queue, 5, offered_per_s=3_000, begun_per_s=10, now=now)
    assert queue.limit == 100


def test_when_the_queue_has_gone_down_the_next_burst_is_let_in_again():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=1_000)
    run(queue, 2, offered_per_s=100, begun_per_s=1_000, now=now)
    assert queue.limit == 2_000


def test_a_stuck_shard_keeps_nobody_else_out():
    admission = Admission(ActorSettings(shards=2, credits=1_000, queue_least=10))
    for _ in range(500):
        admission.enter(0)
    for step in range(30):
        admission.look(step * LOOK_S, 0.01)
    assert not admission.has_room(0)
    assert admission.has_room(1)
    assert not admission.is_full()
    for _ in range(500):
        admission.enter(1)
    assert admission.credits == 0
    assert admission.is_full()


def test_where_every_shard_has_its_queue_nobody_is_let_in_although_there_are_credits():
    admission = Admission(ActorSettings(shards=2, credits=1_000, queue_least=10))
    for shard in (0, 1):
        for _ in range(50):
            admission.enter(shard)
    for step in range(30):
        admission.look(step * LOOK_S, 0.01)
    assert admission.credits == 900
    assert admission.is_full()


def test_those_who_came_before_take_the_room_there_is():
    admission = Admission(ActorSettings(shards=2, credits=1_000, queue_least=10))
    assert not admission.is_full(999)
    assert admission.is_full(1_000)
    admission.queues[0].limit, admission.queues[1].limit = 10, 20
    for _ in range(15):
        admission.enter(0)  # More than there is room for, since its limit went down.
    assert not admission.is_full(19)
    assert admission.is_full(20)


def test_a_queue_that_leaves_by_the_hundred_stands_as_long_as_anybody_is_turned_away():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=400)
    assert queue.limit == 100
    for step in range(1, 60):
        # A commit takes most of them, and as many come at once as may.
        for _ in range(80 if step % 2 else 0):
            queue.leave()
        while queue.length < queue.limit:
            queue.enter()
        queue.look(now + step * LOOK_S, 0.01)
        assert queue.limit <= 120
    for step in (60, 61):
        while queue.length:
            queue.leave()
        queue.look(now + step * LOOK_S, 0.01)
    assert queue.limit == 2_000


def test_where_commits_are_slow_a_queue_holds_what_two_of_them_take():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=3_000, begun_per_s=1_000, commit_s=0.01)
    assert queue.limit < 300
    run(queue, 5, offered_per_s=3_000, begun_per_s=1_000, now=now, commit_s=0.45)
    assert 850 <= queue.limit <= 950


def test_a_pause_in_which_nobody_looked_is_no_second_of_standing():
    queue = a_queue()
    now, _ = run(queue, 5, offered_per_s=900, begun_per_s=1_000)
    for _ in range(200):
        queue.enter()
    for at in (now + 0.1, now + 3.0, now + 3.1):
        queue.look(at, 0.01)
        assert queue.limit == 2_000
