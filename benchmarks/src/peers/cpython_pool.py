"""CPython's own Pool: prints the seconds that a trivial task takes."""

import multiprocessing
import statistics
import sys
import time


def increment(number):
    return number + 1


def burst(pool, numbers):
    handles = [pool.apply_async(increment, (number,)) for number in numbers]
    return [handle.get() for handle in handles]


def imap(pool, numbers):
    return list(pool.imap(increment, numbers))


def one(pool, numbers):
    return [pool.apply(increment, (number,)) for number in numbers]


if __name__ == "__main__":
    work = {"burst": burst, "imap": imap, "one": one}[sys.argv[1]]
    n_workers, budget = int(sys.argv[2]), float(sys.argv[3])
    numbers = range(2000)
    expected = [number + 1 for number in numbers]
    samples = []
    with multiprocessing.get_context("fork").Pool(n_workers) as pool:
        work(pool, numbers[:100])
        started = time.perf_counter()
        while len(samples) < 3 or time.perf_counter() - started < budget:
            before = time.perf_counter()
            results = work(pool, numbers)
            samples.append((time.perf_counter() - before) / len(numbers))
            assert results == expected, "a result is wrong"
    print(statistics.median(samples))
