"""Queues, under each start method."""

import concurrent.futures
import pickle
import queue as names
import signal
import threading
import time

import pytest

import bunshin as mp
import bunshin.queues
from bunshin.connection import wait
from bunshin.queues import Queue

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


def feed(queue, first, items):
    for number in range(first, first + items):
        queue.put(number)


def echo(requests, answers):
    # An array is not to be compared with None.
    while (item := requests.get()) is not None:
        answers.put(item)


def test_a_hundred_thousand_items(context):
    queue = context.Queue()
    children = [start(context, feed, queue, n * 25_000, 25_000) for n in range(4)]
    got = sorted(queue.get(timeout=PATIENCE) for _ in range(100_000))
    assert got == list(range(100_000))
    for child in children:
        ended(child)
    assert queue.empty() and queue.qsize() == 0


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_objects_come_as_they_were(context, kind):
    requests, answers = getattr(context, kind)(), getattr(context, kind)()
    child = start(context, echo, requests, answers)
    for item in ({"a": [1, (2,)]}, "x" * 100_000, b"\1" * 5_000_000, 3.5, len):
        requests.put(item)
        assert answers.get() == item
    requests.put(None)
    ended(child)


def test_simple_objects_come_exactly():
    queue = mp.Queue()
    items = [None, True, False, 0, -1, 2**31 - 1, -(2**31), 2**31, 2**80, 0.0, -1.5, float("inf")]
    items += ["", "a", "\u00e9\u5206" * 300, "x" * 2000, "\ud800", b"", b"\0.", bytes(2000), (), 1j]
    for item in items:
        queue.put(item)
        got = queue.get()
        assert (type(got), got) == (type(item), item)


def test_buffers_come_writable(context):
    numpy = pytest.importorskip("numpy")
    requests, answers = context.Queue(), context.Queue()
    child = start(context, echo, requests, answers)
    for shape in ((10,), (1000, 300)):
        sent = numpy.arange(numpy.prod(shape), dtype=float).reshape(shape)
        requests.put(sent)
        got = answers.get(timeout=PATIENCE)
        assert (got == sent).all()
        got += 1
    requests.put(None)
    ended(child)


def test_many_large_buffers_wait_in_a_queue():
    queue = mp.Queue()
    blocks = [bytearray(n.to_bytes(2, "big") * (1 << 19)) for n in range(200)]
    for block in blocks:
        queue.put(pickle.PickleBuffer(block), timeout=PATIENCE)
    for block in blocks:
        assert memoryview(queue.get(timeout=PATIENCE)) == block


def test_limits(context):
    queue = context.Queue(2)
    queue.put(1)
    queue.put_nowait(2)
    assert queue.full() and queue.qsize() == 2
    with pytest.raises(names.Full):
        queue.put_nowait(3)
    with pytest.raises(names.Full):
        queue.put(3, timeout=0.01)
    assert [queue.get(), queue.get_nowait()] == [1, 2]
    with pytest.raises(names.Empty):
        queue.get_nowait()
    with pytest.raises(names.Empty):
        queue.get(True, 0.01)
    with pytest.raises(names.Empty):
        queue.get(timeout=-1)


def test_put_waits_for_room(context):
    queue = context.Queue(1)
    child = start(context, feed, queue, 0, 100)
    assert [queue.get(timeout=PATIENCE) for _ in range(100)] == list(range(100))
    ended(child)


class Refuses:
    def __reduce__(self):
        raise ZeroDivisionError("not this one")


def test_put_raises_what_cannot_be_pickled():
    for kind in (mp.Queue, mp.SimpleQueue, mp.JoinableQueue):
        queue = kind()
        with pytest.raises(ZeroDivisionError):
            queue.put(Refuses())
        assert queue.empty()
        queue.put(1)
        assert queue.get() == 1


class Sees(Queue):
    def __init__(self, **given):
        self.seen = []
        super().__init__(**given)

    def _on_queue_feeder_error(self, e, obj):
        self.seen.append((e, obj))


def test_a_subclass_may_see_to_what_cannot_be_pickled():
    queue, item = Sees(ctx=mp.get_context()), Refuses()
    queue.put(item)
    [(error, obj)] = queue.seen
    assert isinstance(error, ZeroDivisionError) and obj is item


def test_closing(context):
    queue = context.Queue()
    queue.put(1)
    with pytest.raises(AssertionError):
        queue.join_thread()
    queue.close()
    queue.join_thread()
    queue.cancel_join_thread()
    for call in (lambda: queue.put(1), queue.get, queue.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()
    simple = context.SimpleQueue()
    simple.close()
    with pytest.raises(OSError):
        simple.get()


def test_what_was_put_outlives_its_process(context):
    queue = context.Queue()
    ended(start(context, feed, queue, 0, 10))
    assert [queue.get(timeout=PATIENCE) for _ in range(10)] == list(range(10))


def take(queue, taken):
    while True:
        queue.get()
        taken.release()


def test_killed_consumers_and_producers_leave_a_usable_queue(context):
    queue, taken = context.Queue(5), context.Semaphore(0)
    for turn in range(10):
        children = [
            start(context, take, queue, taken),
            start(context, feed, queue, 0, 1_000_000),
            start(context, take, queue, taken),
        ]
        assert taken.acquire(timeout=PATIENCE)
        time.sleep(0.003 * turn)
        for child in children:
            child.kill()
        for child in children:
            ended(child, -signal.SIGKILL)
        while True:
            try:
                queue.get(timeout=0.01)
            except names.Empty:
                break
        queue.put("here", timeout=PATIENCE)
        assert queue.get(timeout=PATIENCE) == "here"


def work(queue):
    for _ in iter(queue.get, None):
        time.sleep(0.001)
        queue.task_done()
    queue.task_done()


def test_joining(context):
    queue = context.JoinableQueue()
    children = [start(context, work, queue) for _ in range(2)]
    for number in range(20):
        queue.put(number)
    queue.join()
    assert queue.empty()
    for _ in children:
        queue.put(None)
    queue.join()
    for child in children:
        ended(child)
    with pytest.raises(ValueError):
        queue.task_done()


def take_and_die(queue):
    queue.get()
    raise SystemExit(3)


def test_joining_tells_of_lost_objects(context):
    queue = context.JoinableQueue()
    queue.put(1)
    ended(start(context, take_and_die, queue), 3)
    with pytest.raises(mp.LostItems) as raised:
        queue.join()
    assert raised.value.count == 1
    queue.join()


def finish(queue):
    queue.task_done()


def test_another_process_may_finish(context):
    queue = context.JoinableQueue()
    queue.put(1)
    queue.get()
    ended(start(context, finish, queue))
    queue.join()


def test_a_queue_can_be_waited_for(context):
    queue, other = context.Queue(), context.SimpleQueue()
    assert wait([queue._reader, other._reader], 0) == []
    child = start(context, feed, other, 0, 1)
    assert wait([queue._reader, other._reader], PATIENCE) == [other._reader]
    assert other._reader.poll() and not queue._reader.poll(0.01)
    assert other.get() == 0
    assert wait([queue._reader, other._reader], 0) == []
    ended(child)


def test_queues_are_inherited_only():
    for kind in (mp.Queue, mp.SimpleQueue, mp.JoinableQueue):
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(kind())


def test_a_thread_that_gets_lets_others_run():
    queue, got = mp.Queue(), []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    time.sleep(0.05)
    queue.put(1)
    thread.join(PATIENCE)
    assert got == [1]


def square(number):
    return number * number


def test_the_interpreters_executor_runs_over_it(context):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(square, range(50))) == [n * n for n in range(50)]
        with pytest.raises(ZeroDivisionError):
            pool.submit(square, Refuses()).result(PATIENCE)
        assert pool.submit(square, 5).result(PATIENCE) == 25
