"""Locks, what processes wait at, and queues."""

import time

from compare import row, timed


def _child(mp, target, *args):
    child = mp.Process(target=target, args=args, daemon=True)
    child.start()
    return child


def _ended(child):
    def end():
        child.terminate()
        child.join()

    return end


def _uncontended(lock):
    def work():
        for _ in range(1000):
            with lock:
                pass

    return (lambda seconds: timed(work, seconds, 1000)), lambda: None


@row("with lock", 3)
def with_lock(mp):
    return _uncontended(mp.Lock())


@row("with rlock", 3)
def with_rlock(mp):
    return _uncontended(mp.RLock())


@row("with semaphore")
def with_semaphore(mp):
    return _uncontended(mp.Semaphore(2))


@row("acquire, release")
def acquire_release(mp):
    lock = mp.Lock()

    def work():
        acquire, release = lock.acquire, lock.release
        for _ in range(1000):
            acquire()
            release()

    return (lambda seconds: timed(work, seconds, 1000)), lambda: None


def answer_semaphore(ping, pong):
    while True:
        ping.acquire()
        pong.release()


@row("semaphore, there and back", 4)
def semaphore(mp):
    ping, pong = mp.Semaphore(0), mp.Semaphore(0)
    child = _child(mp, answer_semaphore, ping, pong)

    def work():
        for _ in range(20):
            ping.release()
            pong.acquire()

    return (lambda seconds: timed(work, seconds, 20)), _ended(child)


def answer_lock(ping, pong):
    while True:
        ping.acquire()
        pong.release()


@row("lock, there and back", 4)
def lock(mp):
    ping, pong = mp.Lock(), mp.Lock()
    ping.acquire()
    pong.acquire()
    child = _child(mp, answer_lock, ping, pong)

    def work():
        for _ in range(20):
            ping.release()
            pong.acquire()

    return (lambda seconds: timed(work, seconds, 20)), _ended(child)


def answer_event(ping, pong):
    while True:
        ping.wait()
        ping.clear()
        pong.set()


@row("event, there and back", 4)
def event(mp):
    ping, pong = mp.Event(), mp.Event()
    child = _child(mp, answer_event, ping, pong)

    def work():
        for _ in range(20):
            ping.set()
            pong.wait()
            pong.clear()

    return (lambda seconds: timed(work, seconds, 20)), _ended(child)


def answer_condition(condition, turn):
    while True:
        with condition:
            while turn.get_value() == 0:
                condition.wait()
            turn.acquire()
            condition.notify()


@row("condition, there and back", 4)
def condition(mp):
    condition, turn = mp.Condition(), mp.Semaphore(0)
    child = _child(mp, answer_condition, condition, turn)

    def work():
        for _ in range(20):
            with condition:
                turn.release()
                condition.notify()
                while turn.get_value() == 1:
                    condition.wait()

    return (lambda seconds: timed(work, seconds, 20)), _ended(child)


def contend(lock, stop):
    while not stop.is_set():
        with lock:
            pass


@row("with lock, contended by another")
def contended(mp):
    lock, stop = mp.Lock(), mp.Event()

    def run(seconds):
        stop.clear()
        child = _child(mp, contend, lock, stop)
        time.sleep(0.05)

        def work():
            for _ in range(100):
                with lock:
                    pass

        figure = timed(work, seconds, 100)
        stop.set()
        child.join()
        return figure

    return run, lambda: None


def feed(queue, go, items):
    while True:
        go.acquire()
        for number in range(items):
            queue.put(number)


@row("queue, one by one", 8)
def one_by_one(mp):
    items = 2000
    queue, go = mp.Queue(), mp.Semaphore(0)
    child = _child(mp, feed, queue, go, items)

    def work():
        go.release()
        for _ in range(items):
            queue.get()

    return (lambda seconds: timed(work, seconds, items)), _ended(child)


@row("simple queue, one by one", 8)
def simple_one_by_one(mp):
    items = 2000
    queue, go = mp.SimpleQueue(), mp.Semaphore(0)
    child = _child(mp, feed, queue, go, items)

    def work():
        go.release()
        for _ in range(items):
            queue.get()

    return (lambda seconds: timed(work, seconds, items)), _ended(child)


def echo(requests, answers):
    while True:
        answers.put(requests.get())


@row("queue, there and back", 10)
def round_trip(mp):
    requests, answers = mp.Queue(), mp.Queue()
    child = _child(mp, echo, requests, answers)

    def work():
        for _ in range(20):
            requests.put(1)
            answers.get()

    return (lambda seconds: timed(work, seconds, 20)), _ended(child)


def take(queue, done, items):
    while True:
        for _ in range(items):
            queue.get()
        done.release()


@row("queue, four by four", 6)
def four_by_four(mp):
    items, part = 500, 100
    queue, go, done = mp.Queue(), mp.Semaphore(0), mp.Semaphore(0)
    children = [_child(mp, feed, queue, go, items) for _ in range(4)]
    children += [_child(mp, take, queue, done, part) for _ in range(4)]
    # Each taker may have begun a part that it does not finish.
    for number in range(4 * part):
        queue.put(number)

    def work():
        for _ in range(4):
            go.release()
        for _ in range(4 * items // part):
            done.acquire()

    def end():
        for child in children:
            child.terminate()
        for child in children:
            child.join()
        # Not before: children that start late look for what belongs to it by name.
        queue.close()

    return (lambda seconds: timed(work, seconds, 4 * items)), end


@row("queue, make, close")
def queue_make(mp):
    return (lambda seconds: timed(lambda: mp.Queue().close(), seconds)), lambda: None


@row("simple queue, make, close")
def simple_queue_make(mp):
    return (lambda seconds: timed(lambda: mp.SimpleQueue().close(), seconds)), lambda: None


@row("queue of 1 MiB of bytes")
def big(mp):
    requests, answers = mp.Queue(), mp.Queue()
    child = _child(mp, echo, requests, answers)
    block = bytes(1 << 20)

    def work():
        requests.put(block)
        answers.get()

    return (lambda seconds: timed(work, seconds)), _ended(child)
