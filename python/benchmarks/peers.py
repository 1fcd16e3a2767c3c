"""Measures this package beside other Python pools and queues, interleaved in one run.

    python peers.py [--only PATTERN] [--method METHOD] [--rounds N] [--seconds S]

The peers are those of `concurrent.futures`, loky, mpire, billiard, multiprocess and faster-fifo; the
interpreter's `multiprocessing` is the one that the others are told in multiples of. One that is not
installed is printed as such. All sides of a row are set up, and then measured in turn, round by
round, each time from another one on; the table has the medians.
"""

import argparse
import concurrent.futures
import fnmatch
import importlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import compare  # noqa: E402

import bunshin  # noqa: E402

TASKS = list(range(1000))
ROWS = {}


def row(name, *needs):
    """Has a function measure a peer: gives `run(seconds)` and `end()`, or nothing if the peer has
    no such thing."""

    def note(measure):
        ROWS[name] = (measure, needs)
        return measure

    return note


def same(value):
    return value


def double(array):
    array *= 2
    return array


def answer(connection):
    """The other side of a pipe."""
    while (message := connection.recv()) is not None:
        connection.send(message)


def consume(queue, done):
    """The other side of a queue: says how often it had a whole lot."""
    count = 0
    while (message := queue.get()) is not None:
        count += 1
        if count % len(TASKS) == 0:
            done.release()


class Multiprocessing:
    """A module with the interface of `multiprocessing`."""

    def __init__(self, module, method):
        self.mp = module.get_context(method)

    def pool(self):
        pool = self.mp.Pool(2)

        def end():
            pool.close()
            pool.join()

        return (lambda work, items: pool.map(work, items, 1)), end

    def executor(self):
        return None


class Futures:
    """The interpreter's executor."""

    mp = None

    def __init__(self, method):
        self.context = multiprocessing.get_context(method)

    def pool(self):
        executor = concurrent.futures.ProcessPoolExecutor(2, self.context)
        return (lambda work, items: list(executor.map(work, items))), executor.shutdown


class Bunshin(Multiprocessing):
    """This package, also by its executor."""


class OurFutures(Futures):
    """This package's executor."""

    def __init__(self, method):
        self.context = bunshin.get_context(method)

    def pool(self):
        from bunshin.executor import ProcessPoolExecutor

        executor = ProcessPoolExecutor(2, self.context)
        return (lambda work, items: list(executor.map(work, items))), executor.shutdown


class Loky(Futures):
    """An executor; it starts its workers in a way of its own, `loky`."""

    def __init__(self, method):
        self.loky = importlib.import_module("loky")

    def pool(self):
        executor = self.loky.ProcessPoolExecutor(2)
        return (lambda work, items: list(executor.map(work, items))), executor.shutdown


class Mpire:
    """A pool that its users keep alive."""

    mp = None

    def __init__(self, method):
        self.mpire = importlib.import_module("mpire")
        self.method = method

    def pool(self):
        pool = self.mpire.WorkerPool(2, start_method=self.method, keep_alive=True)

        def run(work, items):
            # It would take the elements of an array for arguments.
            return pool.map(work, [(item,) for item in items], chunk_size=1)

        return run, pool.stop_and_join


def _module(name):
    return lambda method: Multiprocessing(importlib.import_module(name), method)


#: Peers, how each is made, and what is to be installed for it.
PEERS = {
    "bunshin": (lambda method: Bunshin(bunshin, method), None),
    "bunshin executor": (OurFutures, None),
    "multiprocessing": (lambda method: Multiprocessing(multiprocessing, method), None),
    "concurrent.futures": (Futures, None),
    "loky": (Loky, "loky"),
    "mpire": (Mpire, "mpire"),
    "billiard": (_module("billiard"), "billiard"),
    "multiprocess": (_module("multiprocess"), "multiprocess"),
    "faster-fifo": (None, "faster-fifo"),
}


@row("tasks one by one", "pool")
def tasks(peer):
    run, end = peer.pool()
    return (lambda seconds: compare.timed(lambda: run(same, TASKS), seconds, len(TASKS))), end


@row("arrays of 8 MiB", "pool")
def arrays(peer):
    import numpy

    items = [numpy.ones(1 << 20) for _ in range(16)]
    run, end = peer.pool()
    return (lambda seconds: compare.timed(lambda: run(double, items), seconds, len(items))), end


@row("a pool's start, first results, end", "pool")
def pool_start(peer):
    def work():
        run, end = peer.pool()
        run(same, TASKS[:2])
        end()

    return (lambda seconds: compare.timed(work, seconds)), lambda: None


@row("pipe, there and back", "mp")
def pipe(peer):
    here, there = peer.mp.Pipe()
    child = peer.mp.Process(target=answer, args=(there,))
    child.start()
    there.close()

    def work():
        for number in range(100):
            here.send(number)
            here.recv()

    def end():
        here.send(None)
        child.join()

    return (lambda seconds: compare.timed(work, seconds, 100)), end


@row("queue, one to one", "queue")
def queue(peer, method):
    if peer == "faster-fifo":
        fifo = importlib.import_module("faster_fifo").Queue()
        mp = multiprocessing.get_context(method)
    else:
        mp = peer.mp
        fifo = mp.Queue()
    done = mp.Semaphore(0)
    child = mp.Process(target=consume, args=(fifo, done))
    child.start()

    def work():
        for number in TASKS:
            fifo.put(number)
        done.acquire()

    def end():
        fifo.put(None)
        child.join()

    return (lambda seconds: compare.timed(work, seconds, len(TASKS))), end


def sides(method, measure, needs):
    """Sets up all peers of a row; gives those that run, and why others do not."""
    running, absent = {}, {}
    for name, (make, package) in PEERS.items():
        try:
            if name == "faster-fifo":
                if "queue" in needs:
                    importlib.import_module("faster_fifo")
                    running[name] = measure("faster-fifo", method)
                continue
            peer = make(method)
            if "queue" in needs:
                if peer.mp is not None:
                    running[name] = measure(peer, method)
            elif "mp" in needs:
                if peer.mp is not None:
                    running[name] = measure(peer)
            elif hasattr(peer, "pool"):
                running[name] = measure(peer)
        except ImportError:
            absent[name] = f"{package or 'numpy'} is not installed"
        except Exception as error:
            absent[name] = f"does not run: {error!r}"
    return running, absent


def versions():
    """What was measured."""
    found = [f"CPython {'.'.join(map(str, sys.version_info[:3]))}"]
    for _, package in PEERS.values():
        if package:
            try:
                found.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                pass
    return ", ".join(found)


def main():
    """Runs the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="rows whose names match, as the shell does")
    parser.add_argument("--method", default="fork", choices=("fork", "spawn", "forkserver"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a measurement takes")
    options = parser.parse_args()
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    print(f"{versions()}; {os.cpu_count()} processors, start method {options.method}")
    print(f"medians of {options.rounds} rounds\n")
    print("| row | peer | /s | to multiprocessing |")
    print("|---|---|---|---|", flush=True)
    for name, (measure, needs) in ROWS.items():
        if not fnmatch.fnmatchcase(name, options.only):
            continue
        running, absent = sides(options.method, measure, needs)
        figures = {peer: [] for peer in running}
        order = list(running)
        for _ in range(options.rounds):
            for peer in order:
                figures[peer].append(running[peer][0](options.seconds))
            # None is always first.
            order.append(order.pop(0))
        for _, end in running.values():
            end()
        medians = {peer: statistics.median(taken) for peer, taken in figures.items()}
        for peer in PEERS:
            if peer in absent:
                print(f"| {name} | {peer} | {absent[peer]} | |")
            elif peer in medians:
                times = medians[peer] / medians["multiprocessing"]
                print(f"| {name} | {peer} | {compare.number(medians[peer])} | {times:.2f} x |")
        sys.stdout.flush()


if __name__ == "__main__":
    # Children find the functions by the name of this file.
    sys.path.insert(0, str(HERE))
    import peers

    start = time.monotonic()
    peers.main()
    print(f"\n{time.monotonic() - start:.0f} s")
