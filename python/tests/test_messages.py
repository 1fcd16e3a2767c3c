"""What messages and items carry: what arrives is what `pickle` would make of it."""

import os
import pickle
import random
import signal
import time

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")
PATIENCE = 60

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def by_pipe():
    there, here = mp.Pipe()

    def carry(item):
        there.send(item)
        return here.recv()

    return carry


def by_queue():
    queue = mp.Queue()

    def carry(item):
        queue.put(item)
        return queue.get(timeout=PATIENCE)

    return carry


@pytest.fixture(params=[by_pipe, by_queue])
def carry(request):
    return request.param()


class Text(str):
    pass


class Number(int):
    pass


class Table(dict):
    pass


def shape(item):
    """The types, values and order of everything in an object."""
    kind = type(item)
    if isinstance(item, dict):
        return kind, [(shape(key), shape(value)) for key, value in item.items()]
    if isinstance(item, (list, tuple)):
        return kind, [shape(part) for part in item]
    if isinstance(item, (set, frozenset)):
        return kind, sorted(repr(shape(part)) for part in item)
    return kind, repr(item)


SCALARS = [
    None,
    True,
    False,
    0,
    255,
    256,
    65_535,
    65_536,
    -1,
    2**31 - 1,
    2**31,
    -(2**31),
    2**63 - 1,
    2**63,
    -(2**63),
    -(2**63) - 1,
    10**40,
    0.0,
    -0.0,
    float("nan"),
    float("inf"),
    1e-320,
    "",
    "key",
    "é" * 100,
    "漢" * 90,
    "\U0001f600",
    "\0",
    "\ud800",
    "x" * 255,
    "x" * 256,
    "x" * 20_000,
    b"",
    b"\0\xff",
    b"x" * 255,
    b"x" * 256,
    b"x" * 20_000,
    bytearray(b"changes"),
    Text("key"),
    Number(7),
    1 + 2j,
    range(3),
]


def tree(generator, depth):
    """An object of some levels, mostly small."""
    kind = generator.randrange(9) if depth else 0
    if kind < 3:
        return generator.choice(SCALARS)
    size = generator.choice((0, 1, 2, 3, 4, 7))
    parts = [tree(generator, depth - 1) for _ in range(size)]
    if kind == 3:
        return tuple(parts)
    if kind in (4, 5):
        return parts
    keys = [part for part in parts if isinstance(part, (str, int, float, bytes, type(None)))]
    if kind == 6:
        return set(keys)
    if kind == 7:
        return Table((key, generator.choice(parts)) for key in keys)
    return {key: generator.choice(parts) for key in keys}


def test_trees_arrive_as_by_pickle(carry):
    for item in SCALARS:
        assert shape(carry(item)) == shape(item)
    generator = random.Random(4)
    for number in range(4_000):
        item = tree(generator, number % 9)
        assert shape(carry(item)) == shape(pickle.loads(pickle.dumps(item, 5)))


def test_what_occurs_twice_arrives_once(carry):
    part = [1]
    for item in ((part, part), [part, {"a": part}], {"a": part, "b": (part,)}):
        once = pickle.loads(pickle.dumps(item))
        arrived = carry(item)
        assert arrived == once
        first, second = list(arrived.values()) if type(arrived) is dict else arrived
        second = second[0] if type(second) is tuple else second
        second = second["a"] if type(second) is dict else second
        assert first is second
    for empty in ([], {}, set()):
        first, second = carry((empty, empty))
        assert first is second
    around = [1]
    around.append(around)
    arrived = carry(around)
    assert arrived[1] is arrived
    table = {}
    table["self"] = (table,)
    arrived = carry(table)
    assert arrived["self"][0] is arrived


def test_large_and_deep_objects_arrive(carry):
    deep = ()
    for level in range(500):
        deep = (level, deep)
    for item in (
        deep,
        list(range(100_000)),
        {f"key {number}": number for number in range(10_000)},
        [{"name": "x", "number": number} for number in range(1_000)],
        ["x" * 10_000] * 1_000,
        {(1, 2): {3: {4: {5: {6: {7: {8: 9}}}}}}},
        set(range(1_000)),
    ):
        assert carry(item) == item


def test_keys_are_those_that_were_sent(carry):
    generator = random.Random(5)
    names = ["".join(generator.choices("abé漢", k=generator.randrange(50))) for _ in range(5_000)]
    for start in range(0, len(names), 100):
        item = dict.fromkeys(names[start : start + 100], start)
        assert list(carry(item)) == list(item)
    assert list(carry({b"a": 1, "a": 2, 97: 3})) == [b"a", "a", 97]


def test_any_bytes_are_read_as_pickle_reads_them():
    """Bytes like those of small objects, and others with a few of them changed."""
    there, here = mp.Pipe()
    generator = random.Random(6)
    # With nothing in them that `pickle` takes for a name to import, or for the size of a table.
    words = ["", "k", "xyz", "é", "漢字", "z" * 300]
    changes = [byte for byte in range(256) if chr(byte) not in "rqpjhgcioRbQP\x81\x92\x93\x95"]

    def plain(depth):
        kind = generator.randrange(8) if depth else 0
        if kind < 4:
            return generator.choice([*words, None, True, 3, 999, -5, 2**40, 0.5, b"", b"zz"])
        parts = [plain(depth - 1) for _ in range(generator.randrange(4))]
        if kind == 4:
            return tuple(parts)
        if kind == 5:
            return parts
        keys = [part for part in parts if not isinstance(part, (list, dict, set, tuple))]
        return set(keys) if kind == 6 else dict.fromkeys(keys, plain(depth - 1))

    for number in range(6_000):
        there.send(plain(number % 6))
        data = bytearray(here.recv_bytes())
        assert data[:2] in (b"\x80\x04", b"\x80\x05")
        for _ in range(number % 4):
            if generator.random() < 0.2:
                del data[generator.randrange(2, len(data)) :]
            else:
                data[generator.randrange(len(data))] = generator.choice(changes)
            if len(data) < 3:
                break
        there.send_bytes(data)
        try:
            expected = shape(pickle.loads(data))
        except Exception as error:
            with pytest.raises(type(error)):
                here.recv()
        else:
            assert shape(here.recv()) == expected
    # And the pipe still works.
    there.send({"a": 1})
    assert here.recv() == {"a": 1}


def echo(requests, answers):
    while (item := requests.get()) is not None:
        answers.put(item)


def echo_by_pipe(connection):
    while (item := connection.recv()) is not None:
        connection.send(item)


#: Around each length at which bytes go another way.
SIZES = [
    *(limit + more for limit in (16 * KIB, 64 * KIB, 1280 * KIB) for more in (-2, -1, 0, 1)),
    MIB,
    2 * MIB,
    5 * MIB + 1,
    32 * MIB,
    32 * MIB + 1,
]


def resized(size):
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


def memory_in_use():
    """Bytes of all memory that this process has descriptors of."""
    seen = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:"):
                stat = os.stat(f"/proc/self/fd/{name}")
                seen[stat.st_ino] = stat.st_blocks * 512
        except OSError:
            continue
    return sum(seen.values())


def test_long_bytes_arrive_by_queue_and_leave_no_memory_behind(context):
    before = memory_in_use()
    requests, answers = context.Queue(), context.Queue()
    child = context.Process(target=echo, args=(requests, answers))
    child.start()
    for size in SIZES:
        sent = resized(size)
        requests.put(sent)
        arrived = answers.get(timeout=PATIENCE)
        assert type(arrived) is bytes and arrived == sent, size
    # Many at a time, of all sizes in turn.
    sizes = [size for size in SIZES if size < 3 * MIB] * 3
    for size in sizes:
        requests.put(resized(size))
    for size in sizes:
        assert answers.get(timeout=PATIENCE) == resized(size), size
    requests.put(None)
    child.join(PATIENCE)
    assert child.exitcode == 0
    kept = memory_in_use() - before
    assert kept < 8 * MIB, f"{kept} bytes are kept by two empty queues"


def test_long_bytes_arrive_by_pipe(context):
    here, there = context.Pipe()
    child = context.Process(target=echo_by_pipe, args=(there,))
    child.start()
    there.close()
    for size in SIZES:
        sent = resized(size)
        here.send(sent)
        arrived = here.recv()
        assert type(arrived) is bytes and arrived == sent, size
        here.send((size, sent))
        assert here.recv() == (size, sent)
    here.send(None)
    child.join(PATIENCE)
    assert child.exitcode == 0


def test_long_bytes_are_bytes_to_those_who_ask_for_bytes():
    there, here = mp.Pipe()
    for size in (64 * KIB, 3 * MIB):
        there.send(resized(size))
        assert pickle.loads(here.recv_bytes()) == resized(size)
        there.send_bytes(resized(size))
        assert here.recv_bytes() == resized(size)


def feed(queue, size):
    generator = random.Random(os.getpid())
    while True:
        queue.put(generator.randbytes(1) * generator.randrange(size // 2, size))


def drain(queue, started):
    while True:
        queue.get()
        started.set()


def test_a_queue_outlives_those_who_put_long_bytes(context):
    queue = context.Queue(4)
    generator = random.Random(7)
    for _ in range(6):
        child = context.Process(target=feed, args=(queue, MIB))
        child.start()
        deadline = time.monotonic() + generator.random() / 10 + 0.3
        while time.monotonic() < deadline or queue.empty():
            item = queue.get(timeout=PATIENCE)
            assert item == item[:1] * len(item)
        os.kill(child.pid, signal.SIGKILL)
        child.join(PATIENCE)
        while not queue.empty():
            item = queue.get(timeout=PATIENCE)
            assert item == item[:1] * len(item)
    queue.put(resized(MIB))
    assert queue.get(timeout=PATIENCE) == resized(MIB)


def test_a_queue_outlives_those_who_get_long_bytes(context):
    queue = context.Queue(4)
    generator = random.Random(8)
    for _ in range(6):
        started = context.Event()
        child = context.Process(target=drain, args=(queue, started))
        child.start()
        deadline = time.monotonic() + generator.random() / 10 + 0.3
        while time.monotonic() < deadline or not started.is_set():
            queue.put(generator.randbytes(1) * generator.randrange(MIB // 2, MIB), timeout=PATIENCE)
        os.kill(child.pid, signal.SIGKILL)
        child.join(PATIENCE)
        while not queue.empty():
            item = queue.get(timeout=PATIENCE)
            assert item == item[:1] * len(item)
