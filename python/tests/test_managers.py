"""Managers as their users meet them, under each start method, and what becomes of the killed."""

import collections.abc
import os
import pickle
import queue
import random
import signal
import threading
import time

import pytest
from waiting import SECONDS, eventually

import bunshin as mp
from bunshin import managers


@pytest.fixture(params=("fork", "spawn", "forkserver"))
def context(request):
    return mp.get_context(request.param)


@pytest.fixture
def manager(context):
    with context.Manager() as made:
        yield made


def started(context, target, *args):
    child = context.Process(target=target, args=args)
    child.start()
    return child


def count_words(words, counts, lock, done):
    for word in words:
        with lock:
            counts[word] = counts.get(word, 0) + 1
    done.put(os.getpid())


def test_processes_share_a_dict(context, manager):
    counts, lock, done = manager.dict(), manager.Lock(), manager.Queue()
    words = ["one", "two", "one"] * 20
    children = [started(context, count_words, words, counts, lock, done) for _ in range(3)]
    for child in children:
        child.join(SECONDS)
        assert child.exitcode == 0
    assert counts.copy() == {"one": 120, "two": 60}
    assert {done.get() for _ in children} == {child.pid for child in children}


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return self.x == other.x


def test_what_a_dict_holds_comes_back_as_it_was(manager):
    held = manager.dict()
    for value in (
        None,
        True,
        -1,
        255,
        256,
        -(2**31) - 1,
        2**63,
        2**200,
        1.5,
        "",
        "ä" * 300,
        "\ud800",
        b"",
        b"x" * 5000,
        bytearray(b"ab"),
        (),
        (1,),
        (1, 2, 3, 4),
        [1, [2, [3, [4, [5, [6, [7, [8]]]]]]]],
        {"a": {"b": (1, None)}},
        {1, 2},
        frozenset([3]),
        1j,
        Point(3),
        range(7),
        list(range(1000)),
    ):
        held["key"] = value
        got = held["key"]
        assert got == value and type(got) is type(value)
        assert held.get("key") == value and held.copy() == {"key": value}
    twice = [1]
    held["twice"] = [twice, twice]
    got = held["twice"]
    assert got[0] is got[1]


def test_dicts_and_lists_are_told_by_their_abstract_types(manager):
    held, numbers = manager.dict(a=1), manager.list([1, 2])
    assert isinstance(held, collections.abc.MutableMapping)
    assert isinstance(numbers, collections.abc.MutableSequence)
    held |= {"b": 2}
    assert isinstance(held, managers.DictProxy)
    assert list(reversed(held)) == ["b", "a"] and list(reversed(numbers)) == [2, 1]
    assert held | {"c": 3} == {"a": 1, "b": 2, "c": 3}
    assert {"z": 0} | held == {"z": 0, "a": 1, "b": 2}


def hold_until(lock, told, go_on):
    with lock:
        told.set()
        go_on.wait()


@pytest.mark.parametrize("name", ("Lock", "RLock", "Condition"))
def test_a_lock_says_whether_somebody_holds_it(context, manager, name):
    lock, told, go_on = getattr(manager, name)(), manager.Event(), manager.Event()
    assert not lock.locked()
    with lock:
        assert lock.locked()
    child = started(context, hold_until, lock, told, go_on)
    assert told.wait(SECONDS)
    assert lock.locked()
    go_on.set()
    child.join(SECONDS)
    assert child.exitcode == 0
    assert not lock.locked()


def test_errors_of_the_object_are_the_callers(manager):
    held, numbers = manager.dict(), manager.list([1])
    for _ in range(3):
        with pytest.raises(KeyError) as raised:
            held["nothing"]
        assert raised.value.args == ("nothing",)
        with pytest.raises(IndexError):
            numbers[5]
        with pytest.raises(TypeError):
            held[[]] = 1
        with pytest.raises(TypeError):
            held.get()
        with pytest.raises(queue.Empty):
            manager.Queue().get(timeout=0)
    with pytest.raises(managers.RemoteError):
        held._callmethod("no_such_method")
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        held["key"] = threading.Lock()
    held["key"] = 1
    assert held["key"] == 1


def test_all_types(manager):
    numbers = manager.list([3, 1, 2])
    numbers.sort()
    numbers += [4]
    numbers *= 2
    assert numbers[:4] == [1, 2, 3, 4] and len(numbers) == 8 and 3 in numbers
    assert [number for number in numbers][-1] == 4 and str(numbers) == repr(numbers[:])
    held = manager.dict(a=1)
    held |= {"b": 2}
    assert list(held) == ["a", "b"] and held.items() == [("a", 1), ("b", 2)]
    assert held.keys() == ["a", "b"] and held.values() == [1, 2] and held.pop("a") == 1
    names = manager.Namespace(x=1)
    names.y = [2]
    names._own = 3
    assert (names.x, names.y, names._own) == (1, [2], 3) and str(names) == "Namespace(x=1, y=[2])"
    del names.x
    assert not hasattr(names, "x")
    value = manager.Value("i", 3)
    value.value += 1
    assert value.value == value.get() == 4
    array = manager.Array("d", [1, 2])
    array[1] = 5
    assert array[:].tolist() == [1, 5] and len(array) == 2
    assert {1, 2} == manager.set([1, 2]).copy() if hasattr(manager, "set") else True
    event = manager.Event()
    assert not event.is_set() and not event.wait(0.01)
    event.set()
    assert event.wait(SECONDS)
    for semaphore in (manager.Semaphore(2), manager.BoundedSemaphore(2)):
        assert semaphore.acquire() and semaphore.acquire() and not semaphore.acquire(False)
        semaphore.release()
        semaphore.release()
    with pytest.raises(ValueError):
        semaphore.release()
    again = manager.RLock()
    with again, again:
        pass
    barrier = manager.Barrier(1)
    barrier.wait(SECONDS)
    assert barrier.parties == 1 and barrier.n_waiting == 0 and not barrier.broken
    items = manager.JoinableQueue()
    items.put(1)
    assert items.get() == 1
    items.task_done()
    items.join()
    with manager.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
        assert pool.apply_async(abs, (-3,)).get(SECONDS) == 3
        assert list(pool.imap(abs, [-4])) == [4]


def notify(condition, ready):
    with condition:
        ready.value = True
        condition.notify_all()


def test_a_condition_wakes_those_who_wait(context, manager):
    condition, ready = manager.Condition(), manager.Value("b", False)
    with condition:
        child = started(context, notify, condition, ready)
        assert condition.wait_for(lambda: ready.value, SECONDS)
    child.join(SECONDS)


def test_a_call_that_waits_holds_up_nobody(manager):
    items, held = manager.Queue(), manager.dict()
    got = []
    waiting = threading.Thread(target=lambda: got.append(items.get()))
    waiting.start()
    for number in range(200):
        held[number] = number
    assert len(held) == 200
    items.put("come")
    waiting.join(SECONDS)
    assert got == ["come"]


def append(outer, number):
    outer[0].append(number)


def test_objects_inside_of_objects(context, manager):
    outer = manager.list()
    inner = manager.list([1])
    outer.append(inner)
    del inner
    child = started(context, append, outer, 2)
    child.join(SECONDS)
    assert child.exitcode == 0
    assert outer[0][:] == [1, 2]
    outer.append(manager.dict(a=manager.list([3])))
    assert outer[1]["a"][0] == 3


def test_an_object_lives_as_long_as_its_proxies(context, manager):
    before = manager._number_of_objects()
    held = manager.dict()
    assert manager._number_of_objects() == before + 1
    copies = [pickle.loads(pickle.dumps(held)) for _ in range(3)]
    del held
    assert copies[0].copy() == {} and manager._number_of_objects() == before + 1
    copies.clear()
    assert manager._number_of_objects() == before


class Account:
    def __init__(self, balance):
        self.balance = balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError(f"{amount} is more than there is")
        self.balance -= amount
        return self.balance

    def _secret(self):
        return "secret"

    def parts(self):
        return [1, 2]

    def unpicklable(self):
        return threading.Lock()


class Bank(managers.BaseManager):
    pass


Bank.register("Account", Account, method_to_typeid={"parts": "Parts"})
Bank.register("Parts", proxytype=managers.ListProxy, create_method=False)
Bank.register("Visible", Account, exposed=("_secret",))


def test_types_of_ones_own(context):
    with Bank(ctx=context) as bank:
        account = bank.Account(35)
        assert account.withdraw(10) == 25
        with pytest.raises(ValueError, match="30 is more than there is"):
            account.withdraw(30)
        with pytest.raises(AttributeError):
            account._secret()
        assert bank.Visible(1)._secret() == "secret"
        assert account.parts()[1] == 2
        with pytest.raises(managers.RemoteError):
            account.unpicklable()
        assert account.withdraw(5) == 20
        copied = pickle.loads(pickle.dumps(account))
        assert copied.withdraw(5) == 15


def note(path):
    with open(path, "w") as file:
        file.write("called")


def refuse():
    raise RuntimeError("it cannot begin")


def test_an_initializer_is_called_first(context, tmp_path):
    manager = managers.BaseManager(ctx=context)
    manager.start(note, (str(tmp_path / "note"),))
    assert (tmp_path / "note").read_text() == "called"
    manager.shutdown()
    manager = managers.BaseManager(ctx=context)
    with pytest.raises(managers.RemoteError, match="it cannot begin"):
        manager.start(refuse)
    with pytest.raises(TypeError):
        manager.start(7)


def test_states(context):
    manager = managers.SyncManager(ctx=context)
    with pytest.raises(AssertionError):
        manager.dict()
    manager.start()
    with pytest.raises(mp.ProcessError):
        manager.start()
    assert manager.address
    manager.shutdown()
    manager.shutdown()
    manager.join(SECONDS)
    with pytest.raises(mp.ProcessError):
        manager.start()
    with pytest.raises(mp.ProcessError), manager:
        pass


# -- the killed


def test_a_killed_server_ends_its_calls(context):
    for _ in range(5):
        manager = context.Manager()
        held, items = manager.dict(), manager.Queue()
        outcomes = []

        def wait(items=items, outcomes=outcomes):
            try:
                items.get()
            except (EOFError, OSError) as error:
                outcomes.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        timer = threading.Timer(random.random() / 10, manager._process.kill)
        timer.start()
        with pytest.raises((EOFError, OSError)):
            while True:
                held["key"] = 1
        waiting.join(SECONDS)
        assert len(outcomes) == 1
        with pytest.raises((EOFError, OSError)):
            held.copy()
        timer.join()
        manager.shutdown()


def hold(lock, again, permits, held, ready):
    lock.acquire()
    again.acquire()
    again.acquire()
    permits.acquire()
    held["by"] = os.getpid()
    ready.set()
    while True:
        held["time"] = time.monotonic()


def test_what_a_killed_client_held_is_free_again(context, manager):
    lock, again, permits = manager.Lock(), manager.RLock(), manager.Semaphore(1)
    held = manager.dict()
    for _ in range(3):
        objects, ready = manager._number_of_objects(), manager.Event()
        child = started(context, hold, lock, again, permits, held, ready)
        assert ready.wait(SECONDS)
        assert not lock.acquire(False)
        time.sleep(random.random() / 20)
        child.kill()
        child.join(SECONDS)
        for one in (lock, again, permits):
            assert one.acquire(True, SECONDS)
            one.release()
        del ready
        eventually(lambda: manager._number_of_objects() == objects)


def leave_locked(lock):
    lock.acquire()


def test_what_a_client_leaves_locked_stays_locked(context, manager):
    lock = manager.Lock()
    child = started(context, leave_locked, lock)
    child.join(SECONDS)
    assert child.exitcode == 0
    assert not lock.acquire(True, 0.2)
    lock.release()


def own(ready):
    manager = mp.get_context("spawn").Manager()
    ready.send(manager._process.pid)
    time.sleep(SECONDS)


def test_a_server_ends_with_the_process_that_started_it(context):
    reader, writer = context.Pipe(duplex=False)
    child = started(context, own, writer)
    pid = reader.recv()
    watched = os.pidfd_open(pid)
    child.kill()
    child.join(SECONDS)
    assert mp.connection.wait([watched], SECONDS) == [watched]
    os.close(watched)


def call_for_ever(held):
    number = 0
    while True:
        held[number % 10] = number
        held.get(number % 10)
        number += 1


def test_clients_that_are_killed_at_any_moment_harm_nobody(context, manager):
    held = manager.dict()
    for _ in range(5):
        child = started(context, call_for_ever, held)
        eventually(lambda: len(held) > 0)
        time.sleep(random.random() / 20)
        os.kill(child.pid, signal.SIGKILL)
        child.join(SECONDS)
        assert set(held.keys()) <= set(range(10))
        held.clear()
