"""Pools, and the starts of processes. `python pool.py` measures these rows alone."""

import statistics
import sys
import time

from compare import row, timed


def same(value):
    return value


def nothing():
    pass


def double(array):
    array *= 2
    return array


def spin(turns):
    total = 0
    for turn in range(turns):
        total += turn & 3
    return total


def _pool(mp, work, batch, workers=2):
    pool = mp.Pool(workers)
    pool.map(same, range(100))

    def end():
        pool.close()
        pool.join()

    return (lambda seconds: timed(lambda: work(pool), seconds, batch)), end


@row("Pool.map, chunksize 1", 10)
def map_one(mp):
    items = list(range(1000))
    return _pool(mp, lambda pool: pool.map(same, items, 1), len(items))


@row("Pool.map")
def map_chunks(mp):
    items = list(range(10_000))
    return _pool(mp, lambda pool: pool.map(same, items), len(items))


@row("Pool.imap", 10)
def imap(mp):
    items = list(range(1000))
    return _pool(mp, lambda pool: [None for _ in pool.imap(same, items)], len(items))


@row("Pool.imap_unordered")
def imap_unordered(mp):
    items = list(range(1000))
    return _pool(mp, lambda pool: [None for _ in pool.imap_unordered(same, items)], len(items))


@row("burst of apply_async", 10)
def burst(mp):
    def work(pool):
        handles = [pool.apply_async(same, (number,)) for number in range(1000)]
        for handle in handles:
            handle.get()

    return _pool(mp, work, 1000)


@row("Pool.apply", 8)
def apply(mp):
    return _pool(mp, lambda pool: pool.apply(same, (1,)), 1)


@row("map over 64 arrays of 8 MiB", 5)
def arrays(mp):
    try:
        import numpy
    except ImportError:
        return (lambda seconds: float("nan")), lambda: None
    items = [numpy.ones(1 << 20) for _ in range(64)]
    return _pool(mp, lambda pool: pool.map(double, items, 1), len(items))


@row("uneven work, two workers, to one process", "1.9 for us")
def uneven(mp):
    turns = [4000 * (number % 16) for number in range(64)]
    pool = mp.Pool(2)
    pool.map(spin, turns)

    def serial():
        for number in turns:
            spin(number)

    def run(seconds):
        # In turn, so that both have the same machine.
        ratios = []
        start = time.perf_counter()
        while not ratios or time.perf_counter() - start < seconds:
            alone = timed(serial, 0)
            ratios.append(timed(lambda: pool.map(spin, turns), 0) / alone)
        return statistics.median(ratios)

    def end():
        pool.close()
        pool.join()

    return run, end


@row("Process start and join", 5)
def process_start(mp):
    def work():
        child = mp.Process(target=nothing)
        child.start()
        child.join()

    return (lambda seconds: timed(work, seconds)), lambda: None


@row("Pool start, first results, end", 5)
def pool_start(mp):
    def work():
        with mp.Pool(2) as pool:
            pool.map(same, range(2), 1)

    return (lambda seconds: timed(work, seconds)), lambda: None


if __name__ == "__main__":
    import compare

    sys.argv[1:1] = [__file__]
    start = time.monotonic()
    compare.main()
    print(f"\n{time.monotonic() - start:.0f} s")
