"""A process that is forked while other threads are in the middle of something works like any other.

What those threads hold at that moment, nobody in the copy gives back.
"""

import contextlib
import gc
import os
import subprocess
import sys
import threading

import pytest

import bunshin as mp
from bunshin import connection
from waiting import eventually

LIMIT = 30
FORKS = 60
LONG = bytes(300_000)
context = mp.get_context("fork")


def put_and_get(queue):
    queue.put(LONG)
    return queue.get()


def send_and_receive(ends):
    thread = threading.Thread(target=ends[0].send_bytes, args=(LONG,))
    thread.start()
    ends[1].recv_bytes()
    thread.join()


def make_and_use(_):
    value = context.Value("i")
    value.value = 1
    with context.Lock():
        pass


def share(_):
    memory = mp.shared_memory.SharedMemory(create=True, size=5000)
    memory.buf[0] = 1
    memory.close()
    memory.unlink()


def call(proxy):
    proxy[os.getpid()] = 1
    proxy.get(os.getpid())


def submit(executor):
    # A copy cannot use the workers of its parent, and is told so.
    executor.submit(abs, -1).result()


def ends_well(work, *args):
    """Has a child do some work."""
    child = context.Process(target=work, args=args)
    child.start()
    child.join(LIMIT)
    code = child.exitcode
    child.kill()
    child.join()
    assert code == 0, "it hangs" if code is None else code


def is_done_while_forking(work, thing, in_child=None):
    """Forks children that do some work which threads of their parent do all the time."""
    in_child = in_child or work
    is_over = threading.Event()
    failures = []

    def go_on():
        try:
            while not is_over.is_set():
                work(thing)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(FORKS):
            ends_well(in_child, thing)
    finally:
        is_over.set()
    for thread in threads:
        thread.join(LIMIT)
    assert not failures


def test_queues():
    is_done_while_forking(put_and_get, context.Queue())


def test_joinable_queues():
    is_done_while_forking(put_and_get, context.JoinableQueue())


def test_simple_queues():
    is_done_while_forking(put_and_get, context.SimpleQueue())


def test_pipes():
    # Whoever sends through it takes what arrives, and not only its own.
    is_done_while_forking(send_and_receive, context.Pipe())


def test_locks_and_values():
    is_done_while_forking(make_and_use, None)


def test_named_memory():
    is_done_while_forking(share, None)


def test_proxies():
    with context.Manager() as manager:
        is_done_while_forking(call, manager.dict())


def test_pools():
    # A copy has its parent's pool as well, and may neither wait for its results nor take any.
    with context.Pool(2) as pool:

        def work(pool):
            assert pool.map(abs, range(50)) == list(range(50))
            assert pool.apply(abs, (-1,)) == 1

        def in_child(pool):
            for iterator in iterators:
                with pytest.raises(OSError, match="belongs to the parent"):
                    list(iterator)
            with pytest.raises(OSError, match="belongs to the parent"):
                pool.map(abs, range(3))
            with pytest.raises(OSError, match="belongs to the parent"):
                pool.map_async(abs, range(3)).get(LIMIT)
            with contextlib.suppress(OSError):
                assert task.get(LIMIT) == 1
            pool.terminate()
            iterators.clear()
            gc.collect()

        iterators = [pool.imap(abs, range(2000)), pool.imap_unordered(abs, range(2000))]
        next(iterators[0])
        task = pool.apply_async(abs, (-1,))
        is_done_while_forking(work, pool, in_child)
        assert list(iterators[0]) == list(range(1, 2000))
        assert sorted(iterators[1]) == list(range(2000))
        assert task.get(LIMIT) == 1


class Slow:
    """Takes its time to be unpickled."""

    def __reduce__(self):
        return wait_here, ()


def wait_here():
    # The first one is the parent's: it has been forked when it goes on.
    is_unpickling.set()
    go_on.wait(LIMIT)


is_unpickling = threading.Event()
go_on = threading.Event()


def test_a_result_that_is_just_being_taken():
    def in_child():
        with pytest.raises(OSError, match="another thread"):
            task.get(LIMIT)

    with context.Pool(1) as pool:
        task = pool.apply_async(Slow)
        thread = threading.Thread(target=task.get, daemon=True)
        thread.start()
        assert is_unpickling.wait(LIMIT)
        ends_well(in_child)
        go_on.set()
        thread.join(LIMIT)


def test_an_iterator_that_a_thread_waits_at(tmp_path):
    def in_child():
        with pytest.raises(OSError, match="belongs to the parent"):
            next(results)

    with context.Pool(1) as pool:
        go = tmp_path / "go"
        results = pool.imap(is_there, [go])
        taken = []
        thread = threading.Thread(target=lambda: taken.append(next(results)), daemon=True)
        thread.start()
        thread.join(0.2)
        ends_well(in_child)
        go.touch()
        thread.join(LIMIT)
        assert taken == [True]


def is_there(path):
    eventually(path.exists)
    return True


def test_executors():
    with mp.ProcessPoolExecutor(1, mp_context=context) as executor:

        def in_child(executor):
            with pytest.raises(RuntimeError):
                executor.submit(abs, -1)

        is_done_while_forking(submit, executor, in_child)


#: Everything is used here for the first time in its process, by a thread and by its copy.
FIRST = """
import sys, threading
import bunshin as mp

context = mp.get_context("fork")
array = context.Array("i", [1, 2, 3])
queue = context.Queue()


def use():
    array.get_obj()
    repr(array)
    array[1:2]
    try:
        queue.get(block=False)
    except Exception:
        pass
    with context.Pool(1) as pool:
        pool.map(abs, iter(range(3)))


def use_here():
    start.wait()
    array.get_obj()
    repr(array)
    with context.Pool(1) as pool:
        pool.map(abs, iter(range(3)))


start = threading.Barrier(3)
threads = [threading.Thread(target=use_here) for _ in range(2)]
for thread in threads:
    thread.start()
start.wait()
sys.setswitchinterval(1e-6)
children = [context.Process(target=use) for _ in range(2)]
for child in children:
    child.start()
for child in children:
    child.join(20)
codes = [child.exitcode for child in children]
for thread in threads:
    thread.join()
print(codes)
sys.exit(codes != [0, 0])
"""


def test_what_is_used_for_the_first_time():
    path = os.pathsep.join(sys.path)
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", FIRST],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_listener_that_several_processes_have():
    with connection.Listener(family="AF_UNIX", authkey=b"key") as listener:

        def serve():
            for _ in range(3):
                with listener.accept() as peer:
                    peer.send(os.getpid())

        # It waits in `accept` when the others are forked.
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        thread.join(0.1)
        children = [context.Process(target=serve) for _ in range(2)]
        for child in children:
            child.start()
        answers = []
        for _ in range(9):
            with connection.Client(listener.address, authkey=b"key") as peer:
                answers.append(peer.recv())
        for child in children:
            child.join(LIMIT)
        thread.join(LIMIT)
        pids = [os.getpid(), *(child.pid for child in children)]
        assert sorted(answers) == sorted(3 * pids)
        assert [child.exitcode for child in children] == [0, 0]


def test_a_listener_after_a_bare_fork():
    with connection.Listener(family="AF_UNIX", authkey=b"key") as listener:

        def serve():
            with listener.accept() as peer:
                peer.send(os.getpid())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        thread.join(0.1)
        child = os.fork()
        if child == 0:
            try:
                serve()
            finally:
                os._exit(0)
        answers = set()
        for _ in range(2):
            with connection.Client(listener.address, authkey=b"key") as peer:
                assert peer.poll(LIMIT)
                answers.add(peer.recv())
        os.waitpid(child, 0)
        thread.join(LIMIT)
        assert answers == {os.getpid(), child}


#: A module whose body starts a process by another thread.
STARTS = """
import pickle, sys, threading
import bunshin as mp

print("imported")


class Thing:
    pass


def target(answers):
    assert sys.modules[__name__].target is target
    # By its name, which it looks for in the module.
    answers.put(b"Thing" in pickle.dumps(Thing()))


def start():
    context = mp.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=target, args=(answers,))
    child.start()
    child.join(20)
    print(child.exitcode, answers.get())


thread = threading.Thread(target=start)
thread.start()
thread.join()
"""


def test_a_module_whose_body_is_running(tmp_path):
    (tmp_path / "starts.py").write_text(STARTS)
    done = subprocess.run(
        [sys.executable, "-c", "import starts"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "imported\n0 True\n", done.stdout + done.stderr
