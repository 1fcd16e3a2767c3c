"""`ForkingPickler.register` counts for everything that pickles for other processes."""

import pytest

import bunshin as mp
from bunshin.reduction import ForkingPickler

METHODS = ("fork", "spawn", "forkserver")


class Handle:
    """What pickle by itself takes apart in the wrong way."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        raise TypeError("not without its reducer")


class Late:
    """What a reducer is registered for when picklers are in use."""


def rebuild(number):
    return Handle(number + 1)


def reduce_handle(handle):
    return rebuild, (handle.number,)


ForkingPickler.register(Handle, reduce_handle)


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def number_of(handle):
    return handle.number


def same(handle):
    return handle


def reply(connection, handle):
    connection.send(handle)
    connection.send(connection.recv())


def feed(source, sink):
    sink.put(source.get())


def test_arguments_of_processes_and_pipes(context):
    here, there = context.Pipe()
    child = context.Process(target=reply, args=(there, Handle(0)))
    child.start()
    # Forked children are given their arguments as they are.
    argued = 0 if context.get_start_method() == "fork" else 1
    assert here.recv().number == argued + 1
    here.send(Handle(10))
    assert here.recv().number == 12
    child.join(20)
    assert child.exitcode == 0


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue", "JoinableQueue"])
def test_queues(context, kind):
    source, sink = getattr(context, kind)(), getattr(context, kind)()
    child = context.Process(target=feed, args=(source, sink))
    child.start()
    source.put(Handle(0))
    assert sink.get().number == 2
    child.join(20)


def test_pools(context):
    with context.Pool(1) as pool:
        assert pool.apply(number_of, (Handle(0),)) == 1
        assert pool.map(number_of, [Handle(0), Handle(5)]) == [1, 6]
        assert pool.apply_async(same, (Handle(0),)).get(20).number == 2
        assert [handle.number for handle in pool.imap(same, [Handle(0)])] == [2]


def test_executors(context):
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:
        assert executor.submit(number_of, Handle(0)).result(20) == 1
        assert [handle.number for handle in executor.map(same, [Handle(0)])] == [2]


def test_managers(context):
    with context.Manager() as manager:
        shared = manager.list()
        shared.append(Handle(0))
        assert shared[0].number == 2


def test_one_that_is_registered_late():
    here, there = mp.Pipe()
    here.send(Late())
    assert type(there.recv()) is Late
    ForkingPickler.register(Late, lambda late: (int, (7,)))
    try:
        here.send(Late())
        assert there.recv() == 7
    finally:
        del ForkingPickler._extra_reducers[Late]


def test_one_that_is_registered_by_a_reducer():
    class Inside:
        pass

    class Outside:
        def __reduce__(self):
            ForkingPickler.register(Inside, lambda inside: (int, (8,)))
            return list, ((Inside(),),)

    here, there = mp.Pipe()
    try:
        here.send([Outside(), Inside()])
        assert there.recv() == [[8], 8]
    finally:
        del ForkingPickler._extra_reducers[Inside]


def check_lengths(ints, doubles, length):
    assert list(ints) == [0] * length
    assert list(doubles) == [0.0] * (length + 5)


def test_arrays_nobody_has_looked_into(context):
    # Of lengths of their own: a type's reducer is registered when its first object is pickled.
    length = METHODS.index(context.get_start_method()) + 31
    arrays = context.Array("i", length), context.RawArray("d", length + 5)
    child = context.Process(target=check_lengths, args=(*arrays, length))
    child.start()
    child.join(30)
    assert child.exitcode == 0


def test_with_buffers_beside_and_by_value():
    here, there = mp.Pipe()
    here.send([Handle(0), bytearray(100_000), lambda: 3])
    handle, buffer, function = there.recv()
    assert (handle.number, len(buffer), function()) == (1, 100_000, 3)
