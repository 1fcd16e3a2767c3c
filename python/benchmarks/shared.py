"""Values, arrays and named memory. `python shared.py` measures these rows alone.

Each row is one statement, in a loop of its own.
"""

import array
import importlib
import sys
import time
import timeit

from compare import row, timed

LENGTH = 1000

#: What is measured, the goal, and how often at once.
ROWS = (
    ("Value, read", "value.value", None, 5_000),
    ("Value, write", "value.value = 7", None, 5_000),
    ("Value += 1", "value.value += 1", 3, 5_000),
    ("Value += 1 with get_lock", "with value.get_lock(): value.value += 1", 3, 5_000),
    ("Array, read an element", "ints[5]", 3, 5_000),
    ("Array, write an element", "ints[5] = 7", 3, 5_000),
    ("Array element += 1", "ints[5] += 1", 3, 5_000),
    ("Array, go through 1,000", "for _ in ints: pass", None, 10),
    ("Array, read 1,000 ints", "ints[:]", 5, 50),
    ("Array, read 1,000 zeros", "zeros[:]", None, 50),
    ("Array, read 1,000 doubles", "doubles[:]", 5, 50),
    ("Array, write 1,000 ints", "ints[:] = numbers", 5, 50),
    ("Array, write 1,000 doubles", "doubles[:] = reals", 5, 50),
    ("Array, write 1,000 from array.array", "ints[:] = packed", None, 50),
    ("Array of text, value", "text.value", None, 1_000),
    ("make a Value", "mp.Value('i', 1)", None, 100),
    ("make a RawValue", "mp.RawValue('i', 1)", None, 200),
    ("make an Array of 1,000", "mp.Array('d', 1000)", None, 100),
    ("make an Array of 8 MiB", "mp.Array('d', 1 << 20)", None, 1),
    (
        "SharedMemory of 4 KiB, make, unlink",
        "s = shm.SharedMemory(create=True, size=4096); s.close(); s.unlink()",
        None,
        50,
    ),
    (
        # It is reserved when it is made here: the cost of an error in the place of a SIGBUS.
        "SharedMemory of 64 MiB, make, unlink",
        "s = shm.SharedMemory(create=True, size=64 << 20); s.close(); s.unlink()",
        None,
        1,
    ),
    (
        # It is reserved when it is made here, and when it is filled there.
        "SharedMemory of 64 MiB, make, fill, unlink",
        "s = shm.SharedMemory(create=True, size=len(block)); s.buf[:] = block; s.close(); s.unlink()",
        None,
        1,
    ),
    ("SharedMemory, open, close", "shm.SharedMemory(memory.name).close()", None, 100),
    ("ShareableList, read one", "items[3]", None, 1_000),
    ("ShareableList, write one", "items[3] = 7", None, 1_000),
)


def names(mp, statement):
    """What a statement may speak of."""
    package = type(mp).__module__.partition(".")[0]
    shm = importlib.import_module(f"{package}.shared_memory")
    numbers = list(range(LENGTH, 2 * LENGTH))
    reals = [number + 0.5 for number in numbers]
    text = mp.Array("c", 100)
    text.value = b"text"
    return {
        "mp": mp,
        "shm": shm,
        "value": mp.Value("i", 5),
        "ints": mp.Array("i", numbers),
        "doubles": mp.Array("d", reals),
        "zeros": mp.Array("i", LENGTH),
        "text": text,
        "numbers": numbers,
        "reals": reals,
        "packed": array.array("i", numbers),
        # A large parent would make whatever forks it slow.
        "block": b"x" * (64 << 20 if "block" in statement else 0),
        "memory": shm.SharedMemory(create=True, size=4096),
        "items": shm.ShareableList(["text", b"bytes", 1.5, 42, None, True]),
    }


def _statement(statement, number):
    def measure(mp):
        found = names(mp, statement)
        timer = timeit.Timer(statement, globals=found)

        def end():
            for memory in (found["memory"], found["items"].shm):
                memory.close()
                memory.unlink()

        return (lambda seconds: timed(lambda: timer.timeit(number), seconds, number)), end

    return measure


for _name, _text, _goal, _number in ROWS:
    row(_name, _goal)(_statement(_text, _number))


if __name__ == "__main__":
    import compare

    sys.argv[1:1] = [__file__]
    start = time.monotonic()
    compare.main()
    print(f"\n{time.monotonic() - start:.0f} s")
