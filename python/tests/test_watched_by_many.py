"""The descriptor of an end that several processes receive from says whether there is a message."""

import select

import pytest

import bunshin as mp

LIMIT = 30
METHODS = ["fork", "spawn", "forkserver"]


def is_there(reader, timeout):
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    return bool(poll.poll(timeout))


def take_in_turn(reader, lock, taken):
    """Takes what there is, with nobody else between the look and the taking; ends at a None."""
    while True:
        is_there(reader, None)
        with lock:
            if not is_there(reader, 0):
                continue
            # Does not wait: it was said to be there.
            item = reader.recv()
        if item is None:
            return
        taken.put(item)
        # Others get their turns, too.
        select.select([], [], [], 0.001)


def send_all(writer, items):
    for item in items:
        writer.send(item)


@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_several_processes_watch_one_end(method, before):
    context = mp.get_context(method)
    reader, writer = context.Pipe(duplex=False)
    lock, taken = context.Lock(), context.Queue()
    send_all(writer, range(before))
    workers = [context.Process(target=take_in_turn, args=(reader, lock, taken)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for burst in range(60):
        count = before or burst % 5 + 1
        if burst or not before:
            send_all(writer, range(count))
        items = [taken.get(timeout=LIMIT) for _ in range(count)]
        assert sorted(items) == list(range(count))
        # Nothing is there: whoever believes that there is waits with the lock.
        assert lock.acquire(timeout=LIMIT)
        lock.release()
    for _ in workers:
        writer.send(None)
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0


@pytest.mark.parametrize("method", METHODS)
def test_several_processes_watch_what_another_sends(method):
    context = mp.get_context(method)
    reader, writer = context.Pipe()
    lock, taken = context.Lock(), context.Queue()
    workers = [context.Process(target=take_in_turn, args=(reader, lock, taken)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for length in (0, 5_000, 200_000):
        items = [bytes(length) + bytes([number]) for number in range(20)]
        sender = context.Process(target=send_all, args=(writer, items))
        sender.start()
        assert sorted(taken.get(timeout=LIMIT) for _ in items) == items
        sender.join(LIMIT)
        assert sender.exitcode == 0
        assert lock.acquire(timeout=LIMIT)
        lock.release()
    send_all(writer, [None, None])
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0
