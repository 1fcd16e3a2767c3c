"""Values and arrays in shared memory, under each start method."""

import array
import ctypes
import os
import pickle
import random
import signal
import sys
import threading
import time

import pytest

import bunshin as mp
from bunshin import heap, sharedctypes
from bunshin.context import AbandonedLock

METHODS = ("fork", "spawn", "forkserver")

INTEGERS = "bBhHiIlLqQ"


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


class Point(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_double)]


class Point3(Point):
    _fields_ = [("z", ctypes.c_short)]


class Own(ctypes.c_int):
    pass


def finish(child):
    child.join(60)
    assert child.exitcode == 0


def run(context, target, *args):
    child = context.Process(target=target, args=args)
    child.start()
    finish(child)


# ---------------------------------------------------------------------------
# Children have them too


def change(value, items, text, point, raw, raws):
    value.value *= 2
    for at in range(len(items)):
        items[at] += 1
    text.value = text.value.upper()
    with point.get_lock():
        point.x, point.y = point.x + 1, -point.y
    raw.value = 2.5
    raws[1:] = [7, 8]


@pytest.mark.parametrize("lock", [True, "other"])
def test_a_child_sees_and_changes_them(context, lock):
    lock = context.Lock() if lock == "other" else lock
    if lock is not True:
        # A lock that cannot be taken twice.
        point = context.Value(Point, 1, 2.5)
    else:
        point = context.Value(Point, 1, 2.5, lock=lock)
    value = context.Value("i", 21, lock=lock)
    items = context.Array("d", [1, 2, 3], lock=lock)
    text = context.Array("c", b"shout", lock=lock)
    raw = context.RawValue("d", 1)
    raws = context.RawArray("h", [1, 2, 3])
    run(context, change, value, items, text, point, raw, raws)
    assert value.value == 42
    assert items[:] == [2, 3, 4]
    assert text.value == b"SHOUT"
    assert (point.x, point.y) == (2, -2.5)
    assert raw.value == 2.5
    assert raws[:] == [1, 7, 8]


def add(value, items, times):
    for _ in range(times):
        with value.get_lock():
            value.value += 1
        with items.get_lock():
            items[3] += 1


def test_the_lock_lets_one_in_at_a_time(context):
    value, items = context.Value("q"), context.Array("i", 5)
    children = [context.Process(target=add, args=(value, items, 2000)) for _ in range(3)]
    for child in children:
        child.start()
    threads = [threading.Thread(target=add, args=(value, items, 500)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for child in children:
        finish(child)
    assert value.value == items[3] == 3 * 2000 + 2 * 500


def give_and_look(values, total):
    for value in values:
        with total.get_lock():
            total.value += value.value


def test_many_values_in_one_start(context):
    values = [context.Value("i", number) for number in range(400)]
    total = context.Value("i", 0)
    run(context, give_and_look, values, total)
    assert total.value == sum(range(400))


def grandchild(method, value):
    child = mp.get_context(method).Process(target=increment, args=(value,))
    child.start()
    child.join(60)
    os._exit(child.exitcode)


def increment(value):
    with value.get_lock():
        value.value += 1


def test_a_child_hands_them_on(context):
    value = context.Value("i", 1)
    run(context, grandchild, context.get_start_method(), value)
    assert value.value == 2


# ---------------------------------------------------------------------------
# When a process dies


def hold(value, ready):
    with value.get_lock():
        value.value = 1
        ready.send(None)
        time.sleep(60)


def test_the_next_one_is_told_of_a_dead_holder(context):
    value = context.Value("i", 0)
    here, there = context.Pipe()
    child = context.Process(target=hold, args=(value, there))
    child.start()
    here.recv()
    assert not value.get_lock().acquire(False)
    assert not value.get_lock().acquire(timeout=0.01)
    child.kill()
    child.join(60)
    with pytest.raises(AbandonedLock):
        value.get_lock().acquire()
    # It has it, and gives it back as anybody does.
    value.value += 1
    value.get_lock().release()
    assert value.value == 2
    with pytest.raises(AssertionError):
        value.get_lock().release()


def count(value, items):
    while True:
        with value.get_lock():
            value.value += 1
            items[0] = value.value


def test_killed_holders_stop_nobody(context):
    value, items = context.Value("q"), context.Array("q", 1)
    generator = random.Random(7)
    for _ in range(6 if context.get_start_method() != "fork" else 20):
        child = context.Process(target=count, args=(value, items))
        child.start()
        before = value.value
        deadline = time.monotonic() + 60
        while read(value) == before:
            assert time.monotonic() < deadline
        time.sleep(generator.random() / 100)
        child.kill()
        child.join(60)
        # Whoever held either of the two locks is dead; the next child is not to be told.
        for shared in value, items, value:
            try:
                with shared.get_lock():
                    value.value += 1
            except AbandonedLock:
                pass
        assert read(value) > before


def read(value):
    try:
        return value.value
    except AbandonedLock:
        return value.value


def test_a_thread_that_ends_with_the_lock_has_abandoned_it():
    value = mp.Value("i", 3)
    thread = threading.Thread(target=value.get_lock().acquire)
    thread.start()
    thread.join(60)
    with pytest.raises(AbandonedLock):
        value.value = 4
    value.value = 5
    assert value.value == 5


def test_memory_stays_while_its_lock_is_held():
    held = [mp.Value("i", 0) for _ in range(50)]
    for value in held:
        value.acquire()
    del held, value
    # The kernel's list of locks still leads through them.
    other = mp.Value("i", 0)
    for _ in range(100):
        with other.get_lock():
            other.value += 1
    assert other.value == 100


# ---------------------------------------------------------------------------
# As ctypes has it


@pytest.mark.parametrize("code", INTEGERS)
def test_integers_wrap_as_ctypes_has_them(code):
    type_ = sharedctypes.typecode_to_type[code]
    value, items = mp.Value(code, 1), mp.Array(code, 3)
    for number in (0, 1, -1, 127, 128, 255, 2**15, 2**31, 2**63 - 1, 2**63, 2**64 + 5, -(2**63), True):
        expected = type_(number).value
        value.value = number
        assert value.value == value.get_obj().value == expected
        items[1] = number
        assert items[1] == expected
        items[:] = [number] * 3
        assert items[:] == items.get_obj()[:] == [expected] * 3
        value.get_obj().value = number
        assert value.value == expected
    for wrong in (1.5, "1", None, b"1", [1]):
        with pytest.raises(TypeError):
            value.value = wrong
        with pytest.raises(TypeError):
            items[0] = wrong
        with pytest.raises(TypeError):
            items[:] = [1, wrong, 2]


@pytest.mark.parametrize("code", "fd")
def test_real_numbers(code):
    value, items = mp.Value(code, 0.5), mp.Array(code, [1, 2.5])
    type_ = sharedctypes.typecode_to_type[code]
    for number in (0.1, -0.0, float("inf"), 10**20, 3, True):
        value.value = number
        items[:] = [number, number]
        assert value.value == items[1] == type_(number).value
        assert items[:] == [type_(number).value] * 2
    for wrong in ("1", None, 1j):
        with pytest.raises(TypeError):
            value.value = wrong
    with pytest.raises(OverflowError):
        value.value = 10**400
    value.value = float("nan")
    assert value.value != value.value


def test_characters_and_truth():
    letter, wide, truth = mp.Value("c", b"x"), mp.Value("u", "x"), mp.Value(ctypes.c_bool)
    assert (letter.value, wide.value, truth.value) == (b"x", "x", False)
    letter.value, wide.value, truth.value = b"\xff", "\U0001f600", [1]
    assert (letter.value, wide.value, truth.value) == (b"\xff", "\U0001f600", True)
    letter.value = 65
    assert letter.value == b"A"
    for wrong in (b"", b"xy", "x", None, 256):
        with pytest.raises(TypeError):
            letter.value = wrong
    with pytest.raises(TypeError):
        wide.value = "xy"
    flags = mp.Array(ctypes.c_bool, [True, False])
    flags[1] = 1
    assert flags[:] == [True, True]


def test_text():
    text = mp.Array("c", 6)
    text.value = b"hello"
    assert isinstance(text, sharedctypes.SynchronizedString)
    assert isinstance(text, sharedctypes.SynchronizedArray)
    assert (text.value, text.raw, text[1], text[1:3], len(text)) == (b"hello", b"hello\0", b"e", b"el", 6)
    text[0] = b"J"
    text.raw = b"Jelly!"
    assert text.value == b"Jelly!"
    with pytest.raises(ValueError):
        text.value = b"too long a text"
    wide = mp.Array("u", "h\xe9llo")
    assert (wide[:], wide[1], len(wide)) == ("h\xe9llo", "\xe9", 5)


def test_indices_and_slices():
    numbers = list(range(100, 110))
    items = mp.Array("i", numbers)
    assert list(items) == numbers and len(items) == 10
    for at in (0, 9, -1, -10):
        assert items[at] == numbers[at]
    for at in (10, -11, 2**70, -(2**70)):
        with pytest.raises(IndexError):
            items[at]
        with pytest.raises(IndexError):
            items[at] = 1
    for part in (slice(2, 5), slice(None), slice(-3, None), slice(5, 2), slice(0, 99), slice(None, None, 3), slice(None, None, -1)):
        assert items[part] == numbers[part]
    for wrong in ("1", 1.0, None):
        with pytest.raises(TypeError):
            items[wrong]
    items[2:4] = (7, 8)
    items[4:6] = array.array("i", [9, 10])
    items[6:8] = range(2)
    numbers[2:8] = [7, 8, 9, 10, 0, 1]
    assert items[:] == numbers
    for wrong in ([1], [1, 2, 3]):
        with pytest.raises(ValueError):
            items[0:2] = wrong
    with pytest.raises(ValueError):
        items[0:2] = array.array("i", [1])
    assert items[:] == numbers
    # Others' formats are not taken for the array's own.
    items[0:2] = array.array("q", [11, 12])
    assert items[:2] == [11, 12]


def test_they_are_ctypes_objects():
    assert isinstance(mp.RawArray("d", 10), ctypes.Array)
    assert isinstance(mp.RawValue("i"), ctypes.c_int)
    value = mp.Value("i", 5)
    assert isinstance(value.get_obj(), ctypes.c_int) and value.get_obj() is value.get_obj()
    assert isinstance(value, sharedctypes.Synchronized)
    assert isinstance(value, sharedctypes.SynchronizedBase)
    ctypes.memset(ctypes.addressof(value.get_obj()), 0xFF, 4)
    assert value.value == -1
    own = mp.Value(Own, 3)
    own.value += 1
    assert own.value == 4 and isinstance(own.get_obj(), Own)
    items = mp.Array(Own, [1, 2])
    items[0] = 5
    assert isinstance(items[0], Own) and items[0].value == 5
    matrix = mp.RawArray(ctypes.c_int * 3, 2)
    matrix[1][2] = 7
    assert list(matrix[1]) == [0, 0, 7]


def test_structures():
    point = mp.Value(Point3, 1, 2.5, 3)
    assert (point.x, point.y, point.z) == (1, 2.5, 3)
    with point.get_lock():
        point.x += 1
    assert point.get_obj().x == 2
    row = mp.Array(Point, [(1, 2.0), (3, 4.0)])
    assert row[1].y == 4.0
    row[0].x = 9
    assert [(p.x, p.y) for p in row] == [(9, 2.0), (3, 4.0)]
    assert type(point) is type(mp.Value(Point3))


def test_copies_and_wrappers():
    point = Point(1, 2.5)
    copied = sharedctypes.copy(point)
    point.x = 5
    assert (copied.x, copied.y) == (1, 2.5)
    wrapped = sharedctypes.synchronized(copied)
    wrapped.x = 7
    assert copied.x == 7
    items = sharedctypes.synchronized(sharedctypes.copy((ctypes.c_int * 3)(1, 2, 3)))
    assert items[:] == [1, 2, 3]
    lock = mp.RLock()
    # Of memory that is not shared, too.
    plain = sharedctypes.Synchronized(ctypes.c_int(5), lock)
    plain.value += 1
    assert plain.value == 6 and plain.get_lock() is lock
    with pytest.raises(AssertionError):
        sharedctypes.synchronized(wrapped)


def test_locks():
    lock = mp.Lock()
    value = mp.Value("i", 5, lock=lock)
    assert value.get_lock() is lock
    with value:
        assert not lock.acquire(False)
    assert not hasattr(mp.Value("i", 5, lock=False), "get_lock")
    assert mp.Value("i", 5, lock=None).get_lock() is not None
    for make in (mp.Value, mp.Array):
        with pytest.raises(AttributeError):
            make("i", 5, lock="no lock")
    own = mp.Array("i", 3).get_lock()
    assert own.acquire() and own.acquire(False) and own.acquire(True, 0.5)
    assert own.locked()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(own.acquire(block=False)))
    thread.start()
    thread.join(60)
    assert seen == [False]
    for _ in range(3):
        own.release()
    assert not own.locked()
    with pytest.raises(AssertionError):
        own.release()
    with pytest.raises((TypeError, OverflowError)):
        own.acquire(timeout="soon")


def test_a_signal_ends_a_wait():
    value = mp.Value("i", 0)

    class Alarm(Exception):
        pass

    def ring(number, frame):
        raise Alarm

    done = threading.Event()

    def hold_it():
        with value.get_lock():
            done.wait(60)

    thread = threading.Thread(target=hold_it)
    thread.start()
    while not value.get_lock().locked():
        time.sleep(0.001)
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Alarm):
            value.value = 1
    finally:
        signal.signal(signal.SIGALRM, before)
        done.set()
        thread.join(60)
    assert value.value == 0


def test_only_children_are_given_them():
    for shared in (mp.Value("i"), mp.Array("i", 3), mp.RawValue("i"), mp.RawArray("c", 3), mp.Value("i").get_lock()):
        with pytest.raises(RuntimeError):
            mp.reduction.ForkingPickler.dumps(shared) if hasattr(mp, "reduction") else pickle.dumps(shared)
    here, there = mp.Pipe()
    with pytest.raises(RuntimeError):
        here.send(mp.Value("i"))
    # Those that are not shared travel as they do without this package.
    here.send(ctypes.c_int(5))
    assert there.recv().value == 5


# ---------------------------------------------------------------------------
# Memory


def test_numpy_sees_the_same_memory():
    numpy = pytest.importorskip("numpy")
    items = mp.Array("d", range(5))
    view = items.as_numpy()
    view[2] = 99
    assert items[2] == 99 and view.dtype == float and not view.flags.owndata
    numpy.frombuffer(items.get_obj())[3] = -1
    assert items[3] == -1
    items[:] = view * 2
    assert items[:] == [0, 2, 198, -2, 8]
    assert mp.Array(Point, 3).as_numpy().dtype.names == ("x", "y")
    assert mp.Array("i", 0).as_numpy().shape == (0,)
    assert mp.Array("u", "text").as_numpy().tolist() == list("text")
    assert mp.Array("c", b"text").as_numpy().tobytes() == b"text"
    # It stays while there is a view of it.
    del items
    assert view[2] == 198


def test_memory_that_is_not_there_is_an_error_at_once():
    for make in (mp.Array, mp.RawArray):
        with pytest.raises((MemoryError, OverflowError, ValueError)):
            make("d", 2**60)
        with pytest.raises(MemoryError):
            make("d", 2**45)
        with pytest.raises(ValueError):
            make("d", -1)
    with pytest.raises(ValueError):
        heap.BufferWrapper(-1)
    with pytest.raises(OverflowError):
        heap.BufferWrapper(sys.maxsize)
    with pytest.raises(MemoryError):
        heap.BufferWrapper(sys.maxsize - 1)


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssShmem:"))


def test_large_memory_is_touched_when_it_is_used():
    before = resident()
    items = mp.Array("d", 8 << 20)
    assert resident() - before < 4 << 10
    assert items[5 << 20] == 0
    items[5 << 20] = 1
    assert items[5 << 20 :][0] == 1


def test_memory_is_used_again_and_clean():
    def mappings():
        with open("/proc/self/maps") as maps:
            return sum(1 for _ in maps)

    def once():
        value = mp.Value("i", 77)
        items = mp.Array("i", [5] * 1000)
        large = mp.RawArray("c", 1 << 20)
        large.raw = b"x" * (1 << 20)
        return value, items, large

    for _ in range(20):
        once()
    before = mappings(), len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        once()
        assert mp.Value("i").value == 0
        assert mp.Array("i", 1000)[:] == [0] * 1000
        assert mp.RawArray("c", 1 << 20)[12345] == b"\0"
    after = mappings(), len(os.listdir("/proc/self/fd"))
    assert after[0] <= before[0] + 20 and after[1] <= before[1] + 20


def keep(first, ready):
    ready.send(None)
    ready.recv()
    ready.send(first.value)


def test_what_a_child_has_is_not_given_to_anybody_else(context):
    here, there = context.Pipe()
    first = context.Value("i", 5)
    child = context.Process(target=keep, args=(first, there))
    child.start()
    here.recv()
    del first
    others = [context.Value("i", 9) for _ in range(100)]
    here.send(None)
    assert here.recv() == 5
    finish(child)
    assert all(other.value == 9 for other in others)


def test_blocks():
    block = heap.BufferWrapper(100)
    view = block.create_memoryview()
    assert len(view) == 100 and not view.readonly and bytes(view) == bytes(100)
    view[3] = 7
    del block
    assert view[3] == 7
    arena = heap.Arena(4096)
    assert arena.size == 4096 and len(arena.buffer) == 4096
    os.fstat(arena.fd)
    buddies = [heap.BufferWrapper(1) for _ in range(100)]
    for one, other in zip(buddies, reversed(buddies)):
        one.buddy = other


def test_nonsense_from_others_is_refused():
    from bunshin import _native

    arena = heap.Arena(4096)
    for offset, size, lock in ((0, 10, True), (4000, 200, False), (8, 8, False), (2**63, 1, False)):
        with pytest.raises((ValueError, OverflowError)):
            _native.attach_block(arena, offset, size, lock)
    read, write = os.pipe()
    try:
        with pytest.raises((OSError, ValueError)):
            heap.Arena(4096, os.dup(read))
    finally:
        os.close(read)
        os.close(write)
    file = os.memfd_create("short")
    os.ftruncate(file, 100)
    with pytest.raises((OSError, ValueError)):
        heap.Arena(4096, file)


@pytest.mark.parametrize("make", (mp.Value, mp.Array, mp.RawValue, mp.RawArray))
def test_an_unknown_typecode_is_told_with_those_that_are_known(make):
    with pytest.raises(TypeError, match="bad typecode 'x'.*'cubBhHiIlLqQfd'"):
        make("x", 1)
