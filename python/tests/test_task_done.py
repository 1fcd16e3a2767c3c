"""`task_done` counts what was put, as in `multiprocessing`, and not who has taken it."""

import threading

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")
PATIENCE = 60


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def run(context, work, *args):
    child = context.Process(target=work, args=args)
    child.start()
    child.join(PATIENCE)
    return child.exitcode


def finish(queue, count):
    for _ in range(count):
        queue.task_done()


def take(queue, count):
    for _ in range(count):
        queue.get(timeout=PATIENCE)


def is_joined(context, queue):
    # In a process, so that this one's `join` still tells of what was lost.
    joining = context.Process(target=queue.join)
    joining.start()
    joining.join(0.3 if context.get_start_method() == "fork" else 1)
    is_alive = joining.is_alive()
    joining.kill()
    joining.join(PATIENCE)
    return not is_alive


def over(queue):
    queue.join()
    with pytest.raises(ValueError):
        queue.task_done()
    queue.join()


def test_before_anybody_has_taken_anything(context):
    queue = context.JoinableQueue()
    over(queue)
    for number in range(5):
        queue.put(number)
    queue.task_done()
    assert run(context, finish, queue, 3) == 0
    assert not is_joined(context, queue)
    queue.task_done()
    over(queue)
    # They are in the queue nevertheless.
    assert [queue.get(timeout=PATIENCE) for _ in range(5)] == list(range(5))
    over(queue)


def test_what_comes_next_counts_again(context):
    queue = context.JoinableQueue()
    for number in range(30):
        queue.put(number)
        queue.task_done()
        over(queue)
        if number % 3:
            assert queue.get(timeout=PATIENCE) is not None
            over(queue)
    queue.put("last")
    assert not is_joined(context, queue)
    assert run(context, take, queue, 5) == 0
    queue.task_done()
    over(queue)


def test_partly_before(context):
    queue = context.JoinableQueue()
    for number in range(4):
        queue.put(number)
    queue.get(timeout=PATIENCE)
    finish(queue, 3)
    assert not is_joined(context, queue)
    for _ in range(3):
        queue.get(timeout=PATIENCE)
    assert not is_joined(context, queue)
    queue.task_done()
    over(queue)


def test_the_end_of_who_takes_what_is_done_loses_nothing(context):
    queue = context.JoinableQueue()
    for number in range(3):
        queue.put(number)
    finish(queue, 2)
    # These were done: none of them is lost, and the third is still to be done.
    assert run(context, take, queue, 2) == 0
    assert not is_joined(context, queue)
    assert run(context, take, queue, 1) == 0
    with pytest.raises(mp.LostItems) as raised:
        queue.join()
    assert raised.value.count == 1
    over(queue)
    queue.put("next")
    assert not is_joined(context, queue)
    queue.get(timeout=PATIENCE)
    queue.task_done()
    over(queue)


def ahead(queue, count):
    for number in range(count):
        queue.put(number)
        queue.task_done()


def test_by_many_at_once(context):
    queue = context.JoinableQueue()
    works = [(ahead, 500), (ahead, 500), (take, 300), (take, 600)]
    children = [context.Process(target=work, args=(queue, count)) for work, count in works]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0
    queue.join()
    take(queue, 100)
    over(queue)


def test_before_with_killed_ones(context):
    queue = context.JoinableQueue()
    for _ in range(3):
        child = context.Process(target=ahead, args=(queue, 10**9))
        child.start()
        taker = context.Process(target=take, args=(queue, 10**9))
        taker.start()
        taker.join(0.3)
        for process in (child, taker):
            process.kill()
            process.join(PATIENCE)
        while not queue.empty():
            queue.get(timeout=PATIENCE)
        # One may have been put and not be done.
        try:
            queue.task_done()
        except ValueError:
            pass
        joining = threading.Thread(target=joined, args=(queue,), daemon=True)
        joining.start()
        joining.join(PATIENCE)
        assert not joining.is_alive()


def joined(queue):
    try:
        queue.join()
    except mp.LostItems:
        pass
