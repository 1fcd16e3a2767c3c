"""Small objects of built-in types: what is written and read without a pickler."""

import gc
import pickle
import random
import sys
import threading

import pytest

import bunshin as mp

METHODS = ("fork", "spawn", "forkserver")
PATIENCE = 60


@pytest.fixture
def pipe():
    there, here = mp.Pipe()
    with there, here:
        yield there, here


class Meddler:
    """Garbage, of which the end does something."""

    def __init__(self, work):
        self.work = work
        self.circle = self

    def __del__(self):
        self.work()


@pytest.fixture
def eager_collector():
    """Has the interpreter look for garbage whenever anything is made."""
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)
    gc.collect()


def test_objects_may_go_while_they_are_gone_through(pipe, eager_collector):
    """To go through a set makes an iterator, for which the interpreter may look for garbage."""
    there, here = pipe
    for number in range(300):
        name = f"a key that nobody else has {number}"
        inner = [f"an item that nobody else has {number}", {number, -number - 1}, [number] * 3]
        outer = [{name: {number + 300}}, inner, {2}, (name, {1}), {name: inner}]

        def meddle():
            outer[0].clear()
            inner.clear()
            outer.clear()
            junk.extend(f"something else {number} {part}" for part in range(20))

        junk = []
        Meddler(meddle)
        there.send(outer)
        # Whatever it was at that moment: it is read, and its parts are what they may be.
        arrived = here.recv()
        assert type(arrived) is list and len(arrived) in (0, 1, 2, 3, 4, 5)
        pickle.dumps(arrived)
        del outer, inner


def test_messages_within_messages(pipe, eager_collector):
    """What runs while a message is read or written may send and receive itself."""
    there, here = pipe
    own_there, own_here = mp.Pipe()
    met = []

    def meddle():
        own_there.send({"inside": {"a": {1}}, "more": [{}, {}]})
        met.append(own_here.recv())

    item = {"outside": [{f"key {n}": {n}} for n in range(30)], "inside": [[], {}, ({},)]}
    for _ in range(200):
        Meddler(meddle)
        there.send(item)
        assert here.recv() == item
    gc.collect()
    assert len(met) == 200
    assert all(one == {"inside": {"a": {1}}, "more": [{}, {}]} for one in met)


LENGTHS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 39, 40, 41)


@pytest.mark.parametrize("length", LENGTHS)
def test_names_that_differ_in_one_character(pipe, length):
    there, here = pipe
    base = "n" * length
    names = [base]
    for at in range(length):
        names += [base[:at] + other + base[at + 1 :] for other in ("m", "\0", "é", "漢")]
    for _ in range(3):
        for start in range(0, len(names), 100):
            item = {name: at for at, name in enumerate(names[start : start + 100])}
            there.send(item)
            assert list(here.recv().items()) == list(item.items())


def test_names_come_as_often_as_they_like(pipe):
    """Many more than are kept, in any order, and each time the right ones."""
    there, here = pipe
    generator = random.Random(8)
    names = []
    for number in range(3_000):
        names.append(f"{generator.choice('abé')}{number:0{generator.randrange(1, 45)}}")
    for _ in range(400):
        item = {}
        for name in generator.sample(names, 30):
            item[name] = generator.choice([1, None, name, [name], {name: 2}])
        there.send(item)
        assert list(here.recv().items()) == list(item.items())


def test_names_that_are_kept_are_few():
    """However many come, memory stays as it is."""
    there, here = mp.Pipe()

    def send(start):
        for number in range(start, start + 20_000):
            there.send({f"name {number}": number})
            here.recv()

    send(0)
    gc.collect()
    before = sys.getallocatedblocks()
    send(20_000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 2_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04}(\x8c\x02\xff\xfeK\x01u.",
        b"\x80\x04}(\x8c\x03\xed\xa0\x80K\x01u.",
        b"\x80\x04}(\x8c\x05abu.",
        b"\x80\x04}(\x8c\x01aK\x01",
        b"\x80\x04}(\x8c\x01au.",
        b"\x80\x04}(]K\x01u.",
        b"\x80\x04}(K\x01}(]Nu",
        b"\x80\x04](K\x01e",
        b"\x80\x04(K\x01]((t.",
        b"\x80\x04\x8f(]\x90.",
        b"\x80\x04}K\x01.",
        b"\x80\x04}(\x8c\x01aK\x01\x8c\x01aK\x02u.",
        b"\x80\x04}(\x8c\x01aK\x01K\x02u.",
    ],
)
def test_what_is_wrong_is_read_as_by_pickle(pipe, data):
    there, here = pipe
    there.send_bytes(data)
    try:
        expected = pickle.loads(data)
    except Exception as error:
        with pytest.raises(type(error)):
            here.recv()
    else:
        assert here.recv() == expected
    there.send({"a": [1]})
    assert here.recv() == {"a": [1]}


def test_numbers_at_the_edges(pipe):
    there, here = pipe
    powers = [sign * (1 << bits) for bits in range(70) for sign in (1, -1)]
    for item in [power + more for power in powers for more in (-1, 0, 1)]:
        for whole in (item, [item], {"a": item}, (item, True)):
            there.send(whole)
            assert here.recv() == whole
    there.send([True, 1, 1.0, False, 0, -0.0])
    assert repr(here.recv()) == "[True, 1, 1.0, False, 0, -0.0]"


def test_each_thread_knows_its_own_names():
    def work(number):
        there, here = mp.Pipe()
        for turn in range(2_000):
            item = {f"key {n}": f"{number} {turn}" for n in range(10)}
            there.send(item)
            if here.recv() != item:
                wrong.append((number, turn))

    wrong = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not wrong


def answer(connection):
    while (item := connection.recv()) is not None:
        connection.send(item)


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(method):
    context = mp.get_context(method)
    here, there = context.Pipe()
    child = context.Process(target=answer, args=(there,))
    child.start()
    there.close()
    generator = random.Random(9)
    for size in range(60):
        item = {}
        for n in range(size):
            item[f"key {n}"] = generator.choice([n, n / 3, str(n), None, [n], (n, {n})])
        here.send(item)
        assert here.poll(PATIENCE)
        assert list(here.recv().items()) == list(item.items())
    here.send(None)
    child.join(PATIENCE)
    assert child.exitcode == 0
