"""Small objects beside `pickle`: any objects, and any bytes."""

import collections
import enum
import pickle
import random
import struct
import sys

import pytest

import bunshin as mp

SEEDS = range(4)


@pytest.fixture
def pipe():
    there, here = mp.Pipe()
    with there, here:
        yield there, here


class Number(int):
    pass


class Text(str):
    pass


class Table(dict):
    pass


class Several(tuple):
    pass


class Colour(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "left right")

#: What is none of the types that are written, though it is equal to one.
ODD = (Number(5), Text("five"), Table(a=1), Several((1,)), Colour.RED, Pair(1, 2), frozenset("ab"))
ODD += (bytearray(b"ab"), 1j, 1 << 64, "\ud800", "x" * 20_000, b"x" * 20_000, int, ...)
NUMBERS = [sign * (1 << bits) + more for bits in (8, 16, 31, 32, 63) for sign in (1, -1) for more in (-1, 0, 1)]
CHARACTERS = ("a", "\0", "\x7f", "\x80", "\u07ff", "\u0800", "\uffff", "\U00010000", "\U0010ffff")
LENGTHS = (0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 39, 40, 41, 254, 255, 256, 257)


class Maker:
    """Makes objects at random, parts of which occur more than once."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.made = []

    def text(self):
        pick = self.random
        if pick.random() < 0.4:
            return f"name {pick.randrange(9)}"
        return pick.choice(CHARACTERS) * pick.choice(LENGTHS)

    def single(self):
        pick = self.random
        kind = pick.randrange(30)
        if kind == 0:
            return pick.choice(ODD)
        if kind < 4:
            return struct.unpack("d", pick.randbytes(8))[0]
        if kind < 8:
            return pick.choice(NUMBERS)
        if kind < 12:
            return pick.randbytes(pick.choice(LENGTHS))
        if kind < 24:
            return self.text()
        return pick.choice([None, True, False, 0, 1, -1, 0.0, -0.0, float("inf"), "", b"", ()])

    def key(self):
        if self.random.random() < 0.2:
            return tuple(self.single() for _ in range(self.random.randrange(3)))
        return self.single()

    def any(self, depth):
        pick = self.random
        if self.made and pick.random() < 0.03:
            return pick.choice(self.made)
        if depth == 0 or pick.random() < 0.3:
            return self.single()
        size = pick.choice([0, 1, 2, 3, 4, 5, 6, 255, 257] if pick.random() < 0.01 else [0, 1, 2, 3])
        kind = pick.randrange(8)
        if kind < 3:
            made = [self.any(depth - 1) for _ in range(size)]
            if pick.random() < 0.01:
                made.append((made,))
        elif kind < 5:
            made = tuple(self.any(depth - 1) for _ in range(size))
        elif kind < 7:
            made = {key: self.any(depth - 1) for key in self.keys(size)}
        else:
            made = set(self.keys(size))
        self.made.append(made)
        return made

    def keys(self, size):
        for _ in range(size):
            key = self.key()
            try:
                hash(key)
            except TypeError:
                continue
            yield key


def picture(whole):
    """All of an object that its copy has to have, and which of its parts that can change are one."""
    found = []
    numbers = {}

    def look(part):
        kind = type(part)
        if isinstance(part, (list, dict, set)):
            if id(part) in numbers:
                found.append(numbers[id(part)])
                return
            numbers[id(part)] = len(numbers)
        found.append(kind)
        if kind is float:
            found.append(struct.pack("d", part))
        elif isinstance(part, (list, tuple)):
            found.append(len(part))
            for item in part:
                look(item)
        elif isinstance(part, dict):
            found.append(len(part))
            for key, value in part.items():
                look(key)
                look(value)
        elif isinstance(part, (set, frozenset)):
            found.append(sorted(repr((type(item), item)) for item in part))
        else:
            found.append(part)

    look(whole)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_any_object_arrives_as_it_is(pipe, seed):
    there, here = pipe
    maker = Maker(seed)
    queue = mp.SimpleQueue()
    for _ in range(8_000):
        item = maker.any(maker.random.randrange(8))
        expected = picture(item)
        there.send(item)
        assert picture(here.recv()) == expected
        # It is a pickle like all others.
        there.send(item)
        assert picture(pickle.loads(here.recv_bytes())) == expected
        # And so is what others write.
        there.send_bytes(pickle.dumps(item, maker.random.randrange(1, 6)))
        assert picture(here.recv()) == expected
        queue.put(item)
        assert picture(queue.get()) == expected
        maker.made.clear()




def read(load):
    """What is read, or what becomes of it instead."""
    try:
        made = load()
    except Exception as error:
        return type(error)
    return picture(made)


@pytest.mark.parametrize("seed", SEEDS)
def test_any_bytes_are_read_as_by_pickle(pipe, seed):
    """Bytes of small objects that were changed here and there: nothing but what `pickle` makes of
    them comes out, at once."""
    there, here = pipe
    maker = Maker(seed)
    pick = maker.random
    codes = b"\x80.N\x88\x89JKM\x8aG\x8cXCB()t]e}u\x8f\x90\x00\x01\x08\xff"
    for _ in range(30_000):
        item = maker.any(pick.randrange(8))
        try:
            there.send(item)
        finally:
            maker.made.clear()
        data = bytearray(here.recv_bytes()[:2_000])
        if data[:2] != b"\x80\x04" or b"r" in data:
            # Not a small one; or `pickle` could take it for a place far up in its memo.
            continue
        for _ in range(pick.randrange(1, 5)):
            at = pick.randrange(2, len(data) + 1)
            if pick.random() < 0.5:
                data[at : at + 1] = bytes([pick.choice(codes)])
            elif pick.random() < 0.5:
                del data[at : at + pick.randrange(1, 9)]
            else:
                data[at:at] = bytes(pick.choice(codes) for _ in range(pick.randrange(1, 5)))
        there.send_bytes(data)
        assert read(here.recv) == read(lambda: pickle.loads(data)), bytes(data)


@pytest.mark.parametrize("item", [1, None, (), "a", b"", 0.5, [], {}, {1}])
def test_what_occurs_in_many_places_takes_no_more_than_with_pickle(pipe, item):
    there, here = pipe
    queue = mp.SimpleQueue()
    for _ in range(5):
        item = (item,) * 256
    there.send(item)
    arrived = here.recv_bytes()
    assert len(arrived) < 100_000
    queue.put(item)
    for copy in (pickle.loads(arrived), queue.get()):
        # To look at each would take years.
        for _ in range(5):
            assert type(copy) is tuple and len(copy) == 256
            copy = copy[sys.maxsize % 256]
