"""Programs as their users have them, for `test_programs.py`.

    python real_programs.py MODULE METHOD PROGRAM

runs one with `multiprocessing` or `bunshin`; each prints the same, whichever it is.
"""

import asyncio
import collections
import concurrent.futures
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import logging
import logging.handlers
import operator
import os
import pathlib
import queue
import signal
import sys
import threading
import time
import uuid

# Children find out by the same words as their parent does.
mp = importlib.import_module(os.environ.get("PROGRAM_MODULE", "multiprocessing"))


def make_executor(context, workers=2, **options):
    if mp.__name__ == "bunshin":
        return mp.ProcessPoolExecutor(workers, mp_context=context, **options)
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, **options)


def square(number):
    return number * number


def add(a, b=0, *, c=0):
    return a + b + c


# ---------------------------------------------------------------------------


def server_side(context):
    """A service that computes in processes while its loop goes on."""

    async def handle(loop, executor, number):
        try:
            return await asyncio.wait_for(loop.run_in_executor(executor, halve, number), 30)
        except ValueError as error:
            return f"refused: {error}"

    async def run():
        loop = asyncio.get_running_loop()
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with make_executor(context) as executor:
            results = await asyncio.gather(*(handle(loop, executor, n) for n in range(12)))
            slow = loop.run_in_executor(executor, time.sleep, 0.3)
            await slow
            late = loop.run_in_executor(executor, time.sleep, 0.5)
            try:
                await asyncio.wait_for(asyncio.shield(late), 0.05)
            except asyncio.TimeoutError:
                print("late")
            await late
        ticking.cancel()
        print(results, ticks > 5)

    asyncio.run(run())


def halve(number):
    if number % 3 == 2:
        raise ValueError(f"{number} is not for halving")
    return number / 2


def progress(context):
    """A bar that moves as calls are done."""
    with make_executor(context) as executor:
        calls = {executor.submit(square, n): n for n in range(40)}
        seen = {}
        for future in concurrent.futures.as_completed(calls):
            seen[calls[future]] = future.result()
        print(len(seen), seen == {n: n * n for n in range(40)})
        late = [executor.submit(time.sleep, 0.4)]
        try:
            list(concurrent.futures.as_completed(late, timeout=0.05))
        except concurrent.futures.TimeoutError as error:
            print(error)


def first_come(context):
    """A loop that gives a new call for each that is done."""
    with make_executor(context) as executor:
        todo = iter(range(30))
        running = {executor.submit(square, next(todo)) for _ in range(4)}
        total = 0
        while running:
            done, running = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                total += future.result()
                for number in todo:
                    running.add(executor.submit(square, number))
                    break
        print(total)


def inner_sum(method, numbers):
    with make_executor(mp.get_context(method), 2) as executor:
        return sum(executor.map(square, numbers))


def nested_process(method, numbers, answers):
    answers.put(inner_sum(method, numbers))


def nested(context):
    """Executors in processes, and in workers of executors."""
    method = context.get_start_method()
    answers = context.Queue()
    children = [
        context.Process(target=nested_process, args=(method, range(n), answers)) for n in (3, 5)
    ]
    for child in children:
        child.start()
    print(sorted(answers.get(timeout=30) for _ in children))
    for child in children:
        child.join()
    print([child.exitcode for child in children])


def prefork_worker(listener, stop, answers):
    told = []
    # Not the event itself: CPython's waits for ever if its handler interrupts a wait for it.
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    answers.put("up")
    while not told:
        time.sleep(0.02)
    stop.set()
    answers.put("down")


def prefork(context):
    """Workers that end in order when they are told by a signal."""
    answers = context.Queue()
    stops = [context.Event() for _ in range(3)]
    children = [
        context.Process(target=prefork_worker, args=(None, stop, answers), name=f"worker-{n}")
        for n, stop in enumerate(stops)
    ]
    for child in children:
        child.start()
    print([answers.get(timeout=30) for _ in children])
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
    print([answers.get(timeout=30) for _ in children])
    for child in children:
        child.join(30)
    print([(child.name, child.exitcode) for child in children], all(s.is_set() for s in stops))
    last = context.Process(target=time.sleep, args=(600,), daemon=True)
    last.start()
    last.terminate()
    last.join()
    print(last.exitcode, last.is_alive(), mp.active_children())


def log_from_child(records, number):
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(records)]
    root.setLevel(logging.INFO)
    logging.getLogger(f"child.{number}").info("number %d of %s", number, {"a": number})
    try:
        1 / (number - 1)
    except ZeroDivisionError:
        logging.getLogger("child").exception("no way")


class Keeping(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.name, record.levelname, record.getMessage().splitlines()[0]))


def log_queue(context):
    """Records of children, written by one listener."""
    records = context.Queue()
    keeping = Keeping()
    listener = logging.handlers.QueueListener(records, keeping)
    listener.start()
    children = [context.Process(target=log_from_child, args=(records, n)) for n in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    listener.stop()
    print(sorted(keeping.lines))


def note_shared(shared, lock, number):
    shared[number] = number * number
    with lock:
        shared["count"] = shared["count"] + 1
    return len(shared) > 0


def shared_dict(context):
    """A manager's dictionary that calls of an executor fill."""
    with context.Manager() as manager:
        shared, lock = manager.dict(count=0), manager.Lock()
        names = manager.list()
        names.extend(["b", "a"])
        names.sort()
        space = manager.Namespace(x=1)
        space.y = space.x + 1
        with make_executor(context) as executor:
            calls = [executor.submit(note_shared, shared, lock, n) for n in range(10)]
            print(all(call.result() for call in calls))
        print(sorted(shared.items(), key=str), list(names), space.y, str(names))


def barrier_phase(barrier, totals, lock, number):
    for phase in range(3):
        with lock:
            totals[phase] += number + phase
        barrier.wait(30)
        # What all have added is seen by all.
        assert totals[phase] == sum(n + phase for n in range(3)), list(totals)
        barrier.wait(30)


def phases(context):
    """A simulation whose processes go from phase to phase together."""
    barrier, lock = context.Barrier(3), context.Lock()
    totals = context.Array("i", 3)
    children = [
        context.Process(target=barrier_phase, args=(barrier, totals, lock, n)) for n in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    print(list(totals), [child.exitcode for child in children], barrier.broken)


def stage(work, source, sink, end):
    for item in iter(source.get, end):
        sink.put(work(item))
    source.put(end)
    sink.put(end)


def pipeline(context):
    """Stages with queues between them, and a last item."""
    queues = [context.Queue() for _ in range(3)]
    children = [
        context.Process(target=stage, args=(square, queues[0], queues[1], None)),
        context.Process(target=stage, args=(str, queues[1], queues[2], None)),
    ]
    for child in children:
        child.start()
    for number in range(200):
        queues[0].put(number)
    queues[0].put(None)
    print(list(iter(queues[2].get, None)) == [str(n * n) for n in range(200)])
    for child in children:
        child.join()
    jobs, results = context.JoinableQueue(), context.Queue()
    worker = context.Process(target=job_worker, args=(jobs, results), daemon=True)
    worker.start()
    for number in range(20):
        jobs.put(number)
    jobs.join()
    print(sum(results.get() for _ in range(20)))
    try:
        results.get(timeout=0.01)
    except queue.Empty:
        print("empty")


def job_worker(jobs, results):
    while True:
        results.put(square(jobs.get()))
        jobs.task_done()


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: float = 0.5
    tags: tuple = ()


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"


class Access(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


Pair = collections.namedtuple("Pair", "left right")


class Slotted:
    __slots__ = ("a", "__dict__")

    def __init__(self, a):
        self.a = a

    def __eq__(self, other):
        return type(other) is Slotted and self.a == other.a

    def __repr__(self):
        return f"Slotted({self.a})"


class Bag(dict):
    def __init__(self, *args, owner=None):
        super().__init__(*args)
        self.owner = owner


def same(value):
    return value


def echo(connection):
    while (message := connection.recv()) is not None:
        connection.send(message)


def messages():
    bag = Bag({"a": 1}, owner="me")
    shared = [1, 2]
    zone = datetime.timezone(datetime.timedelta(hours=9), "JST")
    return [
        Point(1, tags=("a",)),
        Colour.BLUE,
        Access.READ | Access.WRITE,
        Pair(1, "x"),
        Slotted(3),
        bag,
        [shared, shared],
        pathlib.PurePosixPath("/tmp/x"),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 6, zone),
        datetime.timedelta(days=1, microseconds=3),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
        uuid.UUID(int=5),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("hello"),
        collections.defaultdict(list, a=[1]),
        frozenset({1}),
        complex(1, -2),
        float("inf"),
        -(2**70),
        "\N{SNOWMAN}\ud800",
        b"\0" * 5,
        bytearray(b"ab"),
        range(3),
        slice(1, None, 2),
        Ellipsis,
        NotImplemented,
        int,
        len,
        functools.partial(add, 1, c=2),
        operator.attrgetter("x"),
        ValueError("a", 1),
    ]


def types_of_messages(context):
    """Whatever programs send."""
    ours, theirs = context.Pipe()
    child = context.Process(target=echo, args=(theirs,))
    child.start()
    with context.Pool(1) as pool:
        for message in messages():
            ours.send(message)
            for back in (ours.recv(), pool.apply(same, (message,)), pool.map(same, [message])[0]):
                is_same = repr(back) == repr(message) and type(back) is type(message)
                if not is_same:
                    print(type(message), ascii(back))
        back = pool.apply(same, (Bag({"a": 1}, owner="me"),))
        print(back.owner, pool.apply(same, ([[5]] * 2,))[0], Colour.RED is pool.apply(same, (Colour.RED,)))
        twice = pool.apply(same, ([messages()[4]] * 2,))
        print(twice[0] is twice[1], pool.apply(same, (functools.partial(add, 1, c=2),))(3))
    ours.send(None)
    child.join()
    print(child.exitcode)


class Counting(mp.Process):
    """A process with a state, and a result that its parent gets."""

    def __init__(self, start, answers):
        super().__init__(name=f"counting-{start}")
        self.start_at = start
        self.answers = answers
        self.total = 0

    def run(self):
        for number in range(self.start_at, self.start_at + 5):
            self.total += number
        self.answers.put((self.name, self.total, mp.current_process() is self))


def subclasses(context):
    """Processes that are classes of their own."""
    answers = mp.Queue()
    children = [Counting(n, answers) for n in (1, 2)]
    for child in children:
        child.start()
    print(sorted(answers.get(timeout=30) for _ in children))
    for child in children:
        child.join()
        print(child.name, child.exitcode, child.total)


class Analysis:
    """An object that has a pool and leaves it behind when it is pickled."""

    def __init__(self, context, factor):
        self.factor = factor
        self.pool = context.Pool(2)

    def __getstate__(self):
        state = dict(self.__dict__)
        del state["pool"]
        return state

    def scale(self, number):
        return number * self.factor

    def run(self, numbers):
        with self.pool:
            return self.pool.map(self.scale, numbers), hasattr(self, "pool")


STATE = {}


def set_state(name, value):
    STATE[name] = value


def get_state(name):
    return STATE.get(name), len(STATE)


def pools(context):
    """A pool with whatever one calls in it."""
    print(Analysis(context, 3).run(range(5)))
    with context.Pool(2, set_state, ("key", [1, 2])) as pool:
        print(pool.map(get_state, ["key", "other"]))
        print(pool.starmap(add, [(1, 2), (3, 4)]), pool.apply(add, (1,), {"c": 5}))
        print(pool.map(functools.partial(add, 10, c=1), range(3)), pool.map(str.upper, "abc"))
        print(sorted(pool.imap_unordered(square, (n for n in range(10) if n % 2))))
        print(list(pool.imap(square, iter(range(5)), 2)), pool.map("-".join, [["a", "b"]]))
        callbacks = []
        done = pool.map_async(square, range(4), callback=callbacks.append)
        failed = pool.apply_async(square, ("x",), error_callback=lambda e: callbacks.append(type(e)))
        print(done.get(), done.successful())
        try:
            failed.get()
        except TypeError as error:
            print(error)
        # Which of the two comes first is chance.
        print(failed.ready(), failed.successful(), sorted(callbacks, key=str))
        try:
            pool.apply_async(time.sleep, (600,)).get(0.05)
        except mp.TimeoutError as error:
            print("TimeoutError", error)
    try:
        pool.map(square, [1])
    except ValueError as error:
        print(error)
    with context.Pool(2, maxtasksperchild=2) as pool:
        pids = set(pool.map(own_pid, range(12), chunksize=1))
        print(len(pids) >= 4)
        pool.close()
        pool.join()


def own_pid(_number):
    return os.getpid()


class Refused(Exception):
    """An exception that is made of other things than it says."""

    def __init__(self, code, *, reason):
        super().__init__(f"{code}: {reason}")
        self.code, self.reason = code, reason

    def __reduce__(self):
        return functools.partial(Refused, reason=self.reason), (self.code,)


class Careless(Exception):
    """One that cannot be made again of what it was given."""

    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


def fail_in(way):
    if way == "refused":
        raise Refused(7, reason="closed")
    if way == "cause":
        try:
            [][1]
        except IndexError as error:
            raise KeyError("k") from error
    if way == "exit":
        sys.exit(3)
    if way == "os":
        raise FileNotFoundError(2, "No such file", "x.txt")
    if way == "group":
        raise ExceptionGroup("several", [ValueError(1), TypeError(2)])
    if way == "unicode":
        b"\xff".decode()
    if way == "stop":
        raise StopIteration(5)
    raise AssertionError(way)


def errors(context):
    """What calls raise."""
    with make_executor(context) as executor, context.Pool(1) as pool:
        for way in ("refused", "cause", "os", "group", "unicode", "stop", "other"):
            first = executor.submit(fail_in, way).exception(30)
            print(way, type(first).__name__, first, getattr(first, "reason", None))
            print("  ", "in fail_in" in str(first.__cause__), first.args)
            try:
                pool.apply(fail_in, (way,))
            except Exception as second:
                print("  ", type(second) is type(first), second.args == first.args or second.args)
        try:
            list(executor.map(halve, [1, 2, 3]))
        except ValueError as error:
            print(error)


def big_results(context):
    """Results and arguments of many megabytes."""
    with make_executor(context) as executor, context.Pool(2) as pool:
        sizes = [0, 1, 65_536, 1_000_000, 30_000_000]
        print([len(data) for data in executor.map(bytes, sizes)])
        print([len(data) for data in pool.map(bytes, sizes)])
        print(pool.map(len, [b"x" * size for size in sizes]))
        print(len(pool.apply(list, (range(300_000),))))
    answers = context.Queue()
    child = context.Process(target=answers.put, args=(list(range(100_000)),))
    child.start()
    print(sum(answers.get()))
    child.join()


def depth(method, left):
    if left == 0:
        return [os.getpid()]
    context = mp.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=deeper, args=(method, left - 1, answers))
    child.start()
    below = answers.get()
    child.join()
    return [os.getpid(), *below]


def deeper(method, left, answers):
    answers.put(depth(method, left))


def recursion(context):
    """Processes that start processes."""
    print(len(set(depth(context.get_start_method(), 3))))


def wait_for_stop(stop, up):
    up.set()
    print("stopped" if stop.wait(30) else "not stopped", flush=True)


def stop_on_signal(context):
    """A program that ends its children in order when it is told to end."""
    stop, up = context.Event(), context.Event()
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    child = context.Process(target=wait_for_stop, args=(stop, up))
    child.start()
    up.wait(30)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while not told:
        time.sleep(0.02)
    stop.set()
    child.join()
    print(child.exitcode)


def numbers_in_memory(context):
    """Arrays in shared memory that workers change."""
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(create=True, size=800)
    try:
        with memory.buf.cast("d") as view:
            view[:] = memory.buf.cast("d")
            with context.Pool(2) as pool:
                pool.starmap(fill_memory, [(memory.name, n) for n in range(100)])
            print(sum(view))
        values = shared_memory.ShareableList(["a", 1, 2.5, None, b"x"])
        with context.Pool(1) as pool:
            print(pool.apply(list, (values,)))
        values.shm.close()
        values.shm.unlink()
    finally:
        memory.close()
        memory.unlink()


def fill_memory(name, number):
    from multiprocessing import shared_memory

    memory = shared_memory.SharedMemory(name)
    with memory.buf.cast("d") as view:
        view[number] = number / 2
    memory.close()


def children_listed(context):
    """A monitor of whatever runs."""
    with context.Pool(2) as pool:
        pool.map(square, range(4))
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
        listed = mp.active_children()
        print(len(listed), child in listed, {p.is_alive() for p in listed})
        print({p.exitcode for p in listed}, sorted(p.daemon for p in listed))
        child.kill()
        child.join()
        print(len(mp.active_children()))
    executor = make_executor(context)
    executor.submit(square, 1).result()
    print(len(mp.active_children()) > 0, len(executor._processes) == len(mp.active_children()))
    executor.shutdown()
    print(mp.active_children())


def who_am_i(_):
    time.sleep(0.05)
    own = mp.current_process()
    # The number is not documented, and is what many choose a device by.
    return own.name, own._identity, mp.get_start_method()


def who_are_mine(_):
    mp.current_process()._config["daemon"] = False
    with mp.Pool(2) as pool:
        return sorted(set(pool.map(who_am_i, range(8), chunksize=1)))


def names(context):
    """Workers choose by their number."""
    mp.set_start_method("fork", force=True)
    with context.Pool(2) as pool:
        print(sorted(set(pool.map(who_am_i, range(8), chunksize=1))))
        print(sorted(child.name for child in mp.active_children()))
        between = context.Process()
        print(between.name, between._identity)
    with context.Pool(1, maxtasksperchild=5) as pool:
        print(pool.map(who_are_mine, [0]))


def ends(context):
    """Executors and what becomes of their calls at the end."""
    executor = make_executor(context, 1)
    told = []
    first = executor.submit(time.sleep, 0.2)
    rest = [executor.submit(square, n) for n in range(5)]
    for future in rest:
        future.add_done_callback(lambda f: told.append("cancelled" if f.cancelled() else f.result()))
    print(first.cancel() in (True, False), rest[-1].cancel(), rest[-1].cancelled())
    executor.shutdown(wait=True)
    print([future.result() for future in rest[:-1]], sorted(map(str, told)))
    try:
        executor.submit(square, 1)
    except RuntimeError as error:
        print(error)
    try:
        rest[-1].result()
    except concurrent.futures.CancelledError as error:
        print(repr(error))
    with make_executor(context, 1, initializer=set_state, initargs=("a", 5)) as second:
        print(second.submit(get_state, "a").result())
        results = second.map(time.sleep, [0, 0.5], timeout=0.2)
        try:
            list(results)
        except concurrent.futures.TimeoutError:
            print("timeout")
        print(list(second.map(square, [])), list(second.map(add, [1, 2], [3, 4, 5])))
        print(list(second.map(square, range(10), chunksize=4)))


PROGRAMS = (
    server_side,
    progress,
    first_come,
    nested,
    prefork,
    log_queue,
    shared_dict,
    phases,
    pipeline,
    types_of_messages,
    subclasses,
    pools,
    errors,
    big_results,
    recursion,
    stop_on_signal,
    numbers_in_memory,
    children_listed,
    names,
    ends,
)


def main():
    _, method, name = sys.argv
    mp.set_start_method(method)
    globals()[name](mp.get_context(method))


if __name__ == "__main__":
    main()
