"""Values, arrays and named memory beside those of plain `multiprocessing`, interleaved in one run.

    python benchmarks/shared.py [rounds]

Each row is one statement, in a loop of its own; the figures are the least of all rounds, in
nanoseconds for one statement, and the ratio says how many times faster this package is.
"""

import array
import multiprocessing
import multiprocessing.shared_memory
import sys
import timeit

import bunshin
import bunshin.shared_memory

LENGTH = 1000

#: What is measured, and how often in a round.
ROWS = (
    ("value: read", "value.value", 20_000),
    ("value: write", "value.value = 7", 20_000),
    ("value: += 1", "value.value += 1", 20_000),
    ("value: with get_lock", "with value.get_lock(): pass", 20_000),
    ("value: with get_lock, += 1", "with value.get_lock(): value.value += 1", 20_000),
    ("array: read one", "ints[5]", 20_000),
    ("array: write one", "ints[5] = 7", 20_000),
    ("array: += 1 on one", "ints[5] += 1", 20_000),
    ("array: go through 1,000", "for _ in ints: pass", 50),
    ("array: read 1,000 ints", "ints[:]", 500),
    ("array: read 1,000 zeros", "zeros[:]", 500),
    ("array: read 1,000 doubles", "doubles[:]", 500),
    ("array: write 1,000 ints", "ints[:] = numbers", 500),
    ("array: write 1,000 doubles", "doubles[:] = reals", 500),
    ("array: write 1,000 from array.array", "ints[:] = packed", 500),
    ("text: read value", "text.value", 10_000),
    ("make Value", "m.Value('i', 1)", 500),
    ("make RawValue", "m.RawValue('i', 1)", 2_000),
    ("make Array of 1,000", "m.Array('d', 1000)", 500),
    ("make Array of 8 MiB", "m.Array('d', 1 << 20)", 3),
    ("SharedMemory: make, close, unlink", "s = shm.SharedMemory(create=True, size=4096); s.close(); s.unlink()", 100),
    ("SharedMemory: open, close", "shm.SharedMemory(memory.name).close()", 200),
    ("ShareableList: read one", "items[3]", 5_000),
    ("ShareableList: write one", "items[3] = 7", 5_000),
)


def names(package, shared_memory):
    """What the statements speak of."""
    numbers = list(range(LENGTH, 2 * LENGTH))
    reals = [number + 0.5 for number in numbers]
    text = package.Array("c", 100)
    text.value = b"text"
    return {
        "m": package,
        "shm": shared_memory,
        "value": package.Value("i", 5),
        "ints": package.Array("i", numbers),
        "doubles": package.Array("d", reals),
        "zeros": package.Array("i", LENGTH),
        "text": text,
        "numbers": numbers,
        "reals": reals,
        "packed": array.array("i", numbers),
        "memory": shared_memory.SharedMemory(create=True, size=4096),
        "items": shared_memory.ShareableList(["text", b"bytes", 1.5, 42, None, True]),
    }


def rows(rounds=15):
    """Measures all rows: name, nanoseconds for plain `multiprocessing`, nanoseconds for ours."""
    sides = (
        names(multiprocessing, multiprocessing.shared_memory),
        names(bunshin, bunshin.shared_memory),
    )
    try:
        for name, statement, number in ROWS:
            timers = [timeit.Timer(statement, globals=side) for side in sides]
            least = [float("inf")] * 2
            for _ in range(rounds):
                for at, timer in enumerate(timers):
                    least[at] = min(least[at], timer.timeit(number) / number * 1e9)
            yield name, *least
    finally:
        for side in sides:
            side["memory"].close()
            side["memory"].unlink()
            side["items"].shm.close()
            side["items"].shm.unlink()


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print(f"{'':38}{'multiprocessing':>16}{'bunshin':>12}{'ratio':>8}")
    for name, theirs, ours in rows(rounds):
        print(f"{name:38}{theirs:13.0f} ns{ours:9.0f} ns{theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
