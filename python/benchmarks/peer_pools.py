"""The peers of `peers.py`, and what they are asked to do.

    python peer_pools.py PEER METHOD

says what becomes of a peer's pool that loses a worker.
"""

import concurrent.futures
import contextlib
import importlib
import multiprocessing
import os
import selectors
import signal
import sys
import time

import compare
import pool as own_rows

import bunshin

TASKS = list(range(1000))
#: A loop of so many turns each, in the order in which they are given.
UNEVEN = [4000 * (number % 16) for number in range(64)]
ROWS = {}


def row(name, needs="pool"):
    """Has a function measure the peers that have what it needs: gives `run(seconds)` and `end()`."""

    def note(measure):
        ROWS[name] = (measure, needs)
        return measure

    return note


def same(value):
    return value


def die(_value):
    os.kill(os.getpid(), signal.SIGKILL)


def answer(connection):
    """The other side of a pipe."""
    while (message := connection.recv()) is not None:
        connection.send(message)


def consume(queue, done):
    """The other side of a queue: says how often it had a whole lot."""
    count = 0
    while (message := queue.get()) is not None:
        assert message == count % len(TASKS)
        count += 1
        if count % len(TASKS) == 0:
            done.release()


def give_back(requests, answers):
    """The other side of two queues."""
    while (message := requests.get()) is not None:
        answers.put(message)


# ---------------------------------------------------------------------------
# Pools: `map` with tasks one by one, or as the pool likes it; one call; calls for later; the end


class _Pool:
    def __init__(self, pool):
        self.pool = pool

    def one_by_one(self, work, items):
        return self.pool.map(work, items, 1)

    def map(self, work, items):
        return self.pool.map(work, items)

    def call(self, work, item):
        return self.pool.apply(work, (item,))

    def burst(self, work, items):
        return [later.get() for later in [self.pool.apply_async(work, (item,)) for item in items]]

    def end(self):
        self.pool.close()
        self.pool.join()


class _Executor:
    def __init__(self, executor):
        self.executor = executor

    def map(self, work, items):
        return list(self.executor.map(work, items))

    # That is how an executor does it unless it is told otherwise.
    one_by_one = map

    def call(self, work, item):
        return self.executor.submit(work, item).result()

    def burst(self, work, items):
        return [later.result() for later in [self.executor.submit(work, item) for item in items]]

    def end(self):
        self.executor.shutdown()


class _Mpire(_Pool):
    def one_by_one(self, work, items):
        # It would take the elements of an array for arguments, and make one array of them all.
        items = [(item,) for item in items]
        return self.pool.map(work, items, chunk_size=1, concatenate_numpy_output=False)

    def map(self, work, items):
        return self.pool.map(work, [(item,) for item in items])

    def end(self):
        self.pool.stop_and_join()


# ---------------------------------------------------------------------------
# Peers: `pool()`, and those of `mp` and `fifo` that they have


class Multiprocessing:
    """A module with the interface of `multiprocessing`."""

    def __init__(self, module, method):
        self.mp = module.get_context(method)
        self.fifo = self.mp.Queue

    def pool(self):
        return _Pool(self.mp.Pool(2))


class Futures:
    """The interpreter's executor."""

    def __init__(self, method):
        self.context = multiprocessing.get_context(method)

    def pool(self):
        return _Executor(concurrent.futures.ProcessPoolExecutor(2, self.context))


class OurFutures:
    """This package's executor."""

    def __init__(self, method):
        self.context = bunshin.get_context(method)

    def pool(self):
        from bunshin.executor import ProcessPoolExecutor

        return _Executor(ProcessPoolExecutor(2, self.context))


class Loky:
    """An executor; it starts its workers in a way of its own, `loky`."""

    def __init__(self, method):
        self.loky = importlib.import_module("loky")

    def pool(self):
        return _Executor(self.loky.ProcessPoolExecutor(2))


class Mpire:
    """A pool that its users keep alive."""

    def __init__(self, method):
        self.mpire = importlib.import_module("mpire")
        self.method = method

    def pool(self):
        return _Mpire(self.mpire.WorkerPool(2, start_method=self.method, keep_alive=True))


class FasterFifo:
    """A queue, for processes of `multiprocessing`."""

    def __init__(self, method):
        self.fifo = importlib.import_module("faster_fifo").Queue
        self.processes = multiprocessing.get_context(method)


def _module(name):
    return lambda method: Multiprocessing(importlib.import_module(name), method)


#: Peers, how each is made, and what is to be installed for it.
PEERS = {
    "bunshin": (lambda method: Multiprocessing(bunshin, method), None),
    "bunshin executor": (OurFutures, None),
    "multiprocessing": (lambda method: Multiprocessing(multiprocessing, method), None),
    "concurrent.futures": (Futures, None),
    "loky": (Loky, "loky"),
    "mpire": (Mpire, "mpire"),
    "billiard": (_module("billiard"), "billiard"),
    "multiprocess": (_module("multiprocess"), "multiprocess"),
    "faster-fifo": (FasterFifo, "faster-fifo"),
}


# ---------------------------------------------------------------------------
# Rows


def _over(peer, work, batch, expected):
    """Measures what a pool does that is there already, and looks at what it gives first."""
    pool = peer.pool()
    found = work(pool)
    if found != expected:
        raise ValueError("the results are wrong")
    return (lambda seconds: compare.timed(lambda: work(pool), seconds, batch)), pool.end


@row("tasks one by one")
def tasks(peer):
    return _over(peer, lambda pool: pool.one_by_one(same, TASKS), len(TASKS), TASKS)


@row("tasks, by the pool's own chunks")
def chunks(peer):
    return _over(peer, lambda pool: pool.map(same, TASKS), len(TASKS), TASKS)


@row("one task, there and back")
def call(peer):
    return _over(peer, lambda pool: pool.call(same, 7), 1, 7)


@row("burst of 1,000 calls")
def burst(peer):
    return _over(peer, lambda pool: pool.burst(same, TASKS), len(TASKS), TASKS)


@row("uneven work, lots of 64")
def uneven(peer):
    expected = [own_rows.spin(turns) for turns in UNEVEN]
    return _over(peer, lambda pool: pool.map(own_rows.spin, UNEVEN), 1, expected)


@row("arrays of 8 MiB, there and back")
def arrays(peer):
    import numpy

    items = [numpy.ones(1 << 20) for _ in range(16)]
    pool = peer.pool()
    for found in pool.one_by_one(own_rows.double, items):
        if found.shape != (1 << 20,) or not (found == 2).all():
            raise ValueError("the results are wrong")
    del found

    def work():
        pool.one_by_one(own_rows.double, items)

    return (lambda seconds: compare.timed(work, seconds, len(items))), pool.end


@row("a pool's start, first results, end")
def pool_start(peer):
    def work():
        pool = peer.pool()
        if pool.one_by_one(same, TASKS[:2]) != TASKS[:2]:
            raise ValueError("the results are wrong")
        pool.end()

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
            if here.recv() != number:
                raise ValueError("the answer is wrong")

    def end():
        here.send(None)
        child.join()

    return (lambda seconds: compare.timed(work, seconds, 100)), end


def _processes(peer):
    return peer.mp if hasattr(peer, "mp") else peer.processes


@row("queue, one to one", "fifo")
def queue(peer):
    mp, fifo = _processes(peer), peer.fifo()
    done = mp.Semaphore(0)
    child = mp.Process(target=consume, args=(fifo, done))
    child.start()

    def work():
        for number in TASKS:
            fifo.put(number)
        if not done.acquire(timeout=20):
            raise ValueError("something has not arrived")

    def end():
        fifo.put(None)
        child.join()

    return (lambda seconds: compare.timed(work, seconds, len(TASKS))), end


@row("queue, there and back", "fifo")
def queue_back(peer):
    mp, requests, answers = _processes(peer), peer.fifo(), peer.fifo()
    child = mp.Process(target=give_back, args=(requests, answers))
    child.start()

    def work():
        for number in range(20):
            requests.put(number)
            if answers.get() != number:
                raise ValueError("the answer is wrong")

    def end():
        requests.put(None)
        child.join()

    return (lambda seconds: compare.timed(work, seconds, 20)), end


# ---------------------------------------------------------------------------
# A worker that is lost


def lose_one(name, method):
    """Prints what the caller of a task sees that kills its worker, and then whether the pool works."""
    pool = PEERS[name][0](method).pool()
    pool.one_by_one(same, TASKS[:4])
    start = time.monotonic()
    try:
        pool.burst(die, [0])
        seen = "no error"
    except Exception as error:
        seen = type(error).__name__
    print(f"{seen} after {time.monotonic() - start:.2f} s", flush=True)
    try:
        print("works" if pool.map(same, TASKS) == TASKS else "gives wrong results", flush=True)
    except Exception as error:
        print(f"refuses: {type(error).__name__}", flush=True)


def read_lines(process, seen, patience):
    """Reads what a process prints, for so many seconds, and ends it and all that it has started."""
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(seen) < 2 and selector.select(max(0, deadline - time.monotonic())):
            line = process.stdout.readline()
            if not line:
                break
            seen.append(line.strip())
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    # Children find the functions by the name of this file.
    import peer_pools

    peer_pools.lose_one(*sys.argv[1:])
