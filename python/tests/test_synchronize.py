"""Locks and what else processes wait for each other with, under each start method."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")
PATIENCE = 30


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def start(context, target, *args):
    child = context.Process(target=target, args=args)
    child.start()
    return child


def ended(child, exitcode=0):
    child.join(PATIENCE)
    assert child.exitcode == exitcode


def kill(child):
    child.kill()
    ended(child, -signal.SIGKILL)


def add_under(lock, total, times):
    for _ in range(times):
        with lock:
            total.value += 1


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
def test_only_one_is_inside(context, kind):
    lock, total = getattr(context, kind)(), context.RawValue("i")
    children = [start(context, add_under, lock, total, 2000) for _ in range(3)]
    for child in children:
        ended(child)
    assert total.value == 6000


def hold(lock, ready, how):
    if how == "with":
        with lock:
            ready.set()
            time.sleep(PATIENCE)
    lock.acquire()
    ready.set()
    time.sleep(PATIENCE)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_the_next_one_is_told_of_a_dead_holder_and_has_the_lock(context, kind):
    lock, ready = getattr(context, kind)(), context.Event()
    child = start(context, hold, lock, ready, "acquire")
    assert ready.wait(PATIENCE)
    assert not lock.acquire(False)
    assert not lock.acquire(timeout=0.01)
    kill(child)
    with pytest.raises(mp.AbandonedLock) as raised:
        lock.acquire()
    assert isinstance(raised.value, mp.ProcessError)
    assert lock.locked()
    lock.release()
    with lock:
        pass


def test_one_who_waits_learns_within_a_second(context):
    lock, ready = context.Lock(), context.Event()
    child = start(context, hold, lock, ready, "acquire")
    assert ready.wait(PATIENCE)
    told = []

    def waits():
        try:
            lock.acquire(timeout=PATIENCE)
        except mp.AbandonedLock as error:
            told.append(error)

    thread = threading.Thread(target=waits)
    thread.start()
    time.sleep(0.2)
    # Nobody collects it meanwhile.
    os.kill(child.pid, signal.SIGKILL)
    thread.join(PATIENCE)
    assert len(told) == 1 and lock.locked()
    ended(child, -signal.SIGKILL)


def test_with_has_given_an_abandoned_lock_back(context):
    lock, ready = context.Lock(), context.Event()
    child = start(context, hold, lock, ready, "with")
    assert ready.wait(PATIENCE)
    kill(child)
    with pytest.raises(mp.AbandonedLock):
        with lock:
            pytest.fail("the block is not to be run")
    assert not lock.locked()
    assert lock.acquire(False)


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_a_permit_that_is_held_by_with_comes_back(context, kind):
    semaphore, ready = getattr(context, kind)(1), context.Event()
    child = start(context, hold, semaphore, ready, "with")
    assert ready.wait(PATIENCE)
    assert not semaphore.acquire(False)
    kill(child)
    with pytest.raises(mp.AbandonedLock):
        semaphore.acquire(timeout=PATIENCE)
    assert semaphore.get_value() == 0
    semaphore.release()
    assert semaphore.get_value() == 1


def test_a_signal_is_not_taken_back_by_death(context):
    semaphore, ready = context.Semaphore(1), context.Event()
    child = start(context, hold, semaphore, ready, "acquire")
    assert ready.wait(PATIENCE)
    kill(child)
    assert semaphore.get_value() == 0
    assert not semaphore.acquire(timeout=1.2)


def take_and_give(lock):
    while True:
        try:
            with lock:
                pass
        except mp.AbandonedLock:
            pass


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
def test_nobody_hangs_when_users_are_killed_at_random(context, kind):
    lock = getattr(context, kind)()
    rounds = 12
    for turn in range(rounds):
        children = [start(context, take_and_give, lock) for _ in range(2)]
        time.sleep(0.01 + 0.005 * turn)
        for child in children:
            kill(child)
        try:
            assert lock.acquire(timeout=PATIENCE)
        except mp.AbandonedLock:
            pass
        lock.release()


def release_it(lock):
    lock.release()


def test_another_process_may_release(context):
    lock = context.Lock()
    lock.acquire()
    ended(start(context, release_it, lock))
    assert lock.acquire(timeout=PATIENCE)
    lock.release()
    with pytest.raises(ValueError):
        lock.release()


def fail_to_release(lock, caught):
    try:
        lock.release()
    except AssertionError:
        caught.value = 1


def test_only_its_holder_releases_a_recursive_lock(context):
    lock, caught = context.RLock(), context.RawValue("i")
    with lock, lock:
        ended(start(context, fail_to_release, lock, caught))
        assert caught.value == 1
        assert repr(lock) == "<RLock(MainProcess, 2)>"
    assert not lock.locked()


def test_bounds(context):
    with pytest.raises(ValueError):
        context.BoundedSemaphore(2).release()
    semaphore = context.Semaphore(2)
    semaphore.release()
    assert semaphore.get_value() == 3
    many = context.Semaphore(0)
    for _ in range(500):
        many.release()
    assert many.get_value() == 500
    with pytest.raises(OSError):
        context.Semaphore(-1)


def test_with_may_give_its_permit_away(context):
    semaphore = context.BoundedSemaphore(1)
    with semaphore:
        semaphore.release()
        assert semaphore.get_value() == 1
        semaphore.acquire()
    assert semaphore.get_value() == 1


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Condition", "Event"])
def test_what_is_shared_is_inherited_only(kind):
    with pytest.raises(RuntimeError, match="inheritance"):
        pickle.dumps(getattr(mp, kind)())
    here, _there = mp.Pipe()
    with pytest.raises(RuntimeError, match="inheritance"):
        here.send(mp.Barrier(2))


def test_thousands_of_locks(context):
    locks = [context.Lock() for _ in range(5000)]
    locks[4000].acquire()
    assert [lock.locked() for lock in locks].count(True) == 1
    ended(start(context, release_it, locks[4000]))
    assert not locks[4000].locked()


def use_all(locks, done):
    for lock in locks:
        lock.release()
    done.set()


def test_many_locks_arrive_as_themselves(context):
    locks, done = [context.Lock() for _ in range(300)], context.Event()
    for lock in locks:
        lock.acquire()
    child = start(context, use_all, locks, done)
    assert done.wait(PATIENCE)
    ended(child)
    assert not any(lock.locked() for lock in locks)


def wait_once(condition, ready, woken):
    with condition:
        ready.release()
        condition.wait()
        woken.release()


def test_notify_wakes_as_many_as_asked(context):
    condition = context.Condition()
    ready, woken = context.Semaphore(0), context.Semaphore(0)
    children = [start(context, wait_once, condition, ready, woken) for _ in range(3)]
    for _ in children:
        assert ready.acquire(timeout=PATIENCE)
    with condition:
        condition.notify(2)
    for _ in range(2):
        assert woken.acquire(timeout=PATIENCE)
    assert not woken.acquire(timeout=0.2)
    with condition:
        condition.notify_all()
    assert woken.acquire(timeout=PATIENCE)
    for child in children:
        ended(child)


def test_a_killed_waiter_keeps_no_notification(context):
    condition = context.Condition()
    ready, woken = context.Semaphore(0), context.Semaphore(0)
    first = start(context, wait_once, condition, ready, woken)
    assert ready.acquire(timeout=PATIENCE)
    with condition:
        pass
    kill(first)
    second = start(context, wait_once, condition, ready, woken)
    assert ready.acquire(timeout=PATIENCE)
    with condition:
        condition.notify()
    assert woken.acquire(timeout=PATIENCE)
    ended(second)


def test_a_condition_wants_its_lock(context):
    condition = context.Condition(context.Lock())
    with pytest.raises(AssertionError):
        condition.wait(0)
    with pytest.raises(AssertionError):
        condition.notify()
    with condition:
        assert condition.wait(0.01) is False
        assert condition.wait_for(lambda: 7) == 7
        assert not condition.wait_for(lambda: 0, timeout=0.01)
    assert not condition.locked()


def wait_for_it(event, woken):
    assert event.wait(PATIENCE)
    woken.release()


def test_an_event_wakes_all(context):
    event, woken = context.Event(), context.Semaphore(0)
    assert event.wait(0.01) is False
    children = [start(context, wait_for_it, event, woken) for _ in range(3)]
    event.set()
    for child in children:
        ended(child)
    assert woken.get_value() == 3
    event.clear()
    assert not event.is_set()


def pass_it(barrier, numbers):
    numbers[barrier.wait(PATIENCE)] += 1


def test_a_barrier_lets_all_go(context):
    barrier, numbers = context.Barrier(3), context.RawArray("i", 3)
    children = [start(context, pass_it, barrier, numbers) for _ in range(2)]
    pass_it(barrier, numbers)
    for child in children:
        ended(child)
    assert list(numbers) == [1, 1, 1]
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


def test_a_killed_party_breaks_the_barrier(context):
    barrier = context.Barrier(3)
    child = start(context, pass_it, barrier, context.RawArray("i", 3))
    deadline = time.monotonic() + PATIENCE
    while barrier.n_waiting == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(child)
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(PATIENCE)
    assert barrier.broken
    barrier.reset()
    assert not barrier.broken


def test_an_action_that_raises_breaks_the_barrier():
    def refuse():
        raise KeyError("no")

    barrier = mp.Barrier(1, action=refuse)
    with pytest.raises(KeyError):
        barrier.wait()
    assert barrier.broken
    with pytest.raises(ValueError):
        mp.Barrier(0)


WAITS = {
    "lock": "lock = mp.Lock(); lock.acquire(); wait = lock.acquire",
    "rlock": "lock = mp.Semaphore(0); wait = lock.acquire",
    "event": "wait = mp.Event().wait",
    "condition": "c = mp.Condition(); c.acquire(); wait = c.wait",
    "barrier": "wait = mp.Barrier(2).wait",
    "get": "wait = mp.Queue().get",
    "put": "q = mp.Queue(1); q.put(1); wait = lambda: q.put(2)",
    "join": "q = mp.JoinableQueue(); q.put(1); wait = q.join",
}


@pytest.mark.parametrize("what", WAITS)
def test_ctrl_c_ends_a_wait(what):
    program = (
        "import bunshin as mp, sys\n"
        f"{WAITS[what]}\n"
        "print('waits', flush=True)\n"
        "try:\n    wait()\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "waits\n"
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=PATIENCE)
    assert (out, err, run.returncode) == ("interrupted\n", "", 0)


def test_threads_of_one_process_exclude_each_other():
    lock, total = mp.Lock(), [0]

    def work():
        for _ in range(2000):
            with lock:
                now = total[0]
                total[0] = now + 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert total == [6000]
