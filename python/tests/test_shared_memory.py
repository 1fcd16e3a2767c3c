"""Shared memory with a name, and lists in it, under each start method and beside plain CPython."""

import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time

import pytest

import bunshin as mp
from bunshin import resource_tracker, shared_memory
from bunshin.shared_memory import ShareableList, SharedMemory

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture(params=METHODS)
def context(request):
    return mp.get_context(request.param)


def is_there(name):
    return os.path.exists("/dev/shm/" + name.lstrip("/"))


def gone(name):
    """Waits until a name is gone."""
    deadline = time.monotonic() + 30
    while is_there(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def finish(child):
    child.join(60)
    assert child.exitcode == 0


def python(program, *arguments, **options):
    """What a plain interpreter prints that runs the program."""
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


# ---------------------------------------------------------------------------
# Memory


def write(memory, name):
    memory.buf[:5] = b"howdy"
    other = SharedMemory(name)
    assert bytes(other.buf[:5]) == b"howdy"
    other.buf[5] = 42
    other.close()
    memory.close()


def test_a_child_opens_it(context):
    memory = SharedMemory(create=True, size=100)
    child = context.Process(target=write, args=(memory, memory.name))
    child.start()
    finish(child)
    assert bytes(memory.buf[:6]) == b"howdy*"
    # Opening it did not make the child its owner.
    assert is_there(memory.name)
    memory.unlink()
    memory.close()


def test_names_and_sizes():
    name = f"bunshin-test-{os.getpid()}"
    memory = SharedMemory(name, create=True, size=5000)
    try:
        assert (memory.name, memory._name, memory.size, len(memory.buf)) == (name, "/" + name, 5000, 5000)
        assert repr(memory) == f"SharedMemory({name!r}, size=5000)"
        assert bytes(memory.buf) == bytes(5000)
        with pytest.raises(FileExistsError):
            SharedMemory(name, create=True, size=10)
        other = SharedMemory(name, size=10**9)
        assert other.size == 5000
        other.close()
        other.close()
        assert other.buf is None
        copied = pickle.loads(pickle.dumps(memory))
        copied.buf[7] = 7
        assert memory.buf[7] == 7
        copied.close()
    finally:
        memory.unlink()
    assert not is_there(name)
    with pytest.raises(FileNotFoundError):
        memory.unlink()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)
    # Those who have it keep it.
    memory.buf[0] = 1
    memory.close()


def test_what_is_refused():
    for size in (0, -1):
        with pytest.raises(ValueError):
            SharedMemory(create=True, size=size)
    with pytest.raises(ValueError):
        SharedMemory()
    with pytest.raises(TypeError):
        SharedMemory(7)
    with pytest.raises((TypeError, ValueError)):
        SharedMemory(create=True, size="8")
    for name in ("", "/", "a/b", ".", "..", "n" * 300):
        with pytest.raises(OSError):
            SharedMemory(name, create=True, size=8)
        with pytest.raises(OSError):
            SharedMemory(name)
    with pytest.raises(ValueError):
        SharedMemory("null\0byte", create=True, size=8)
    before = set(os.listdir("/dev/shm"))
    for size in (2**45, 2**62, 2**63 - 1):
        with pytest.raises(MemoryError):
            SharedMemory(create=True, size=size)
    with pytest.raises((MemoryError, OverflowError)):
        SharedMemory(create=True, size=2**70)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")]


def test_what_is_no_memory_is_refused():
    name = f"bunshin-test-{os.getpid()}"
    path = "/dev/shm/" + name
    open(path, "w").close()
    try:
        with pytest.raises((ValueError, OSError)):
            SharedMemory(name)
    finally:
        os.remove(path)
    os.mkfifo(path)
    try:
        with pytest.raises((ValueError, OSError)):
            SharedMemory(name)
    finally:
        os.remove(path)


def test_it_is_not_closed_under_a_view():
    memory = SharedMemory(create=True, size=100)
    part = memory.buf[10:20]
    with pytest.raises(BufferError):
        memory.close()
    part[0] = 5
    part.release()
    memory.close()
    memory.unlink()
    memory = SharedMemory(create=True, size=100)
    memory.unlink()
    whole = memory.buf
    part = memory.buf[10:20]
    del memory
    # The object is gone, and the memory is not.
    part[0] = 5
    assert part[0] == 5
    whole.release()


def test_numpy_has_it_without_copying():
    numpy = pytest.importorskip("numpy")
    memory = SharedMemory(create=True, size=800)
    view = numpy.ndarray(100, float, memory.buf)
    view[:] = numpy.arange(100)
    other = SharedMemory(memory.name)
    assert numpy.ndarray(100, float, other.buf)[99] == 99
    other.close()
    # An array that the memory does not know of is none the worse for it.
    memory.close()
    memory.unlink()
    assert view.sum() == sum(range(100))
    memory = SharedMemory(create=True, size=800)
    view = numpy.frombuffer(memory.buf)
    with pytest.raises(BufferError):
        memory.close()
    view[0] = 1
    del view
    memory.close()
    memory.unlink()


def test_opening_and_making_need_no_descriptor_for_long():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        memory = SharedMemory(create=True, size=100)
        SharedMemory(memory.name).close()
        memory.unlink()
        memory.close()
    # The helper that removes names has one.
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# ---------------------------------------------------------------------------
# Who removes the names

MAKE = """
import sys
from bunshin.shared_memory import SharedMemory
memories = [SharedMemory(create=True, size=100, **{options}) for _ in range(3)]
print(*(memory.name for memory in memories), flush=True)
{then}
"""


def made_by(then, options="{}"):
    program = MAKE.format(options=options, then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().split()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_names_go_with_a_killed_program(number):
    process, names = made_by("sys.stdin.read()")
    assert len(names) == 3 and all(map(is_there, names))
    process.send_signal(number)
    process.wait(60)
    process.stdout.close()
    process.stdin.close()
    assert all(map(gone, names))


def test_names_go_with_a_program_that_ends():
    process, names = made_by("pass")
    process.communicate(timeout=60)
    assert len(names) == 3 and all(map(gone, names))


def test_names_that_are_not_tracked_stay():
    process, names = made_by("", "{'track': False}")
    process.communicate(timeout=60)
    time.sleep(0.5)
    assert len(names) == 3 and all(map(is_there, names))
    for name in names:
        memory = SharedMemory(name, track=False)
        memory.close()
        memory.unlink()


def test_unregister_leaves_a_name_and_register_takes_it():
    process, names = made_by(
        "from bunshin import resource_tracker\n"
        "resource_tracker.unregister(memories[0]._name, 'shared_memory')\n"
        "resource_tracker.unregister('/there-is-none', 'shared_memory')"
    )
    process.communicate(timeout=60)
    assert gone(names[1]) and gone(names[2])
    assert is_there(names[0])
    program = "import sys; from bunshin import resource_tracker as r; r.register(sys.argv[1], 'shared_memory')"
    python(program, names[0])
    assert gone(names[0])
    with pytest.raises(ValueError):
        resource_tracker.register("n" * 600, "shared_memory")


def make_many(connection):
    memories = []
    while True:
        memories.append(SharedMemory(create=True, size=1000))
        connection.send(memories[-1].name)
        if len(memories) % 3 == 0:
            memories.pop(0).unlink()


def test_names_go_with_a_killed_child(context):
    generator = random.Random(3)
    for _ in range(3 if context.get_start_method() != "fork" else 8):
        here, there = context.Pipe()
        child = context.Process(target=make_many, args=(there,))
        child.start()
        there.close()
        names = [here.recv()]
        time.sleep(generator.random() / 20)
        child.kill()
        child.join(60)
        try:
            while True:
                names.append(here.recv())
        except EOFError:
            pass
        assert all(map(gone, names))
        here.close()


def make_one(connection):
    memory = SharedMemory(create=True, size=100)
    memory.buf[:4] = b"left"
    connection.send(memory.name)
    memory.close()


def test_what_a_child_leaves_behind_is_the_programs(context):
    here, there = context.Pipe()
    child = context.Process(target=make_one, args=(there,))
    child.start()
    name = here.recv()
    finish(child)
    time.sleep(0.3)
    memory = SharedMemory(name)
    assert bytes(memory.buf[:4]) == b"left"
    memory.close()
    memory.unlink()


LEAVE = """
import sys, bunshin as mp
from bunshin.shared_memory import SharedMemory

def make(_):
    memory = SharedMemory(create=True, size=100)
    memory.close()
    return memory.name

def run(connection):
    connection.send(make(0))

if __name__ == "__main__":
    context = mp.get_context(sys.argv[1])
    here, there = context.Pipe()
    child = context.Process(target=run, args=(there,))
    child.start()
    child.join()
    names = [here.recv()]
    with context.Pool(2) as pool:
        names += pool.map(make, range(4))
    for name in names:
        SharedMemory(name).close()
    print(*names, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ends", ["killed", "in order"])
def test_what_children_left_goes_with_the_program(method, ends, tmp_path):
    # A pool's workers are ended in no order; what their tasks have made stays all the same.
    program = tmp_path / "leave.py"
    program.write_text(LEAVE)
    process = subprocess.Popen(
        [sys.executable, str(program), method], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    names = process.stdout.readline().split()
    assert len(names) == 5 and all(map(is_there, names))
    if ends == "killed":
        process.kill()
    process.communicate(timeout=60)
    assert all(map(gone, names))


# ---------------------------------------------------------------------------
# Beside plain CPython


def test_cpython_opens_ours():
    memory = SharedMemory(create=True, size=100)
    memory.buf[:5] = b"hello"
    program = (
        "import sys\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "memory = shared_memory.SharedMemory(sys.argv[1])\n"
        "resource_tracker.unregister(memory._name, 'shared_memory')\n"
        "print(bytes(memory.buf[:5]), memory.size)\n"
        "memory.buf[:3] = b'bye'\n"
        "memory.close()\n"
    )
    assert python(program, memory.name) == "b'hello' 100"
    assert bytes(memory.buf[:5]) == b"byelo"
    assert is_there(memory.name)
    memory.unlink()
    memory.close()


def test_we_open_cpythons():
    program = (
        "import sys\n"
        "from multiprocessing import shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=5000)\n"
        "items = shared_memory.ShareableList(['text', b'bytes', 1.5, 42, None, True])\n"
        "print(memory.name, items.shm.name, flush=True)\n"
        "sys.stdin.readline()\n"
        "assert bytes(memory.buf[4990:4995]) == b'there'\n"
        "assert list(items) == ['TEXT', b'bytes', 2, 42, None, False], list(items)\n"
        "items.shm.close(); items.shm.unlink()\n"
        "memory.close(); memory.unlink()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    name, of_list = process.stdout.readline().split()
    memory, items = SharedMemory(name), ShareableList(name=of_list)
    assert memory.size == 5000
    memory.buf[4990:4995] = b"there"
    assert list(items) == ["text", b"bytes", 1.5, 42, None, True]
    items[0], items[2], items[-1] = "TEXT", 2, False
    memory.close()
    items.shm.close()
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def test_cpython_reads_our_lists():
    items = ShareableList(["text", b"bytes", -1.5, 2**62, None, True, "\xe9" * 20])
    program = (
        "import sys\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "items = shared_memory.ShareableList(name=sys.argv[1])\n"
        "resource_tracker.unregister(items.shm._name, 'shared_memory')\n"
        "print(list(items) == ['text', b'bytes', -1.5, 2**62, None, True, '\\xe9' * 20], items.format)\n"
        "items[0] = 'short'\n"
    )
    assert python(program, items.shm.name) == f"True {items.format}"
    assert items[0] == "short"
    items.shm.unlink()
    items.shm.close()


# ---------------------------------------------------------------------------
# Lists


def change(items):
    items[0], items[1] = items[0] + "!", items[1] + 1


def test_a_child_changes_a_list(context):
    items = ShareableList(["hello", 41])
    child = context.Process(target=change, args=(items,))
    child.start()
    finish(child)
    assert list(items) == ["hello!", 42]
    items.shm.unlink()
    items.shm.close()


def test_lists():
    items = ShareableList(["howdy", b"bytes", -273.154, 100, None, True, 42])
    try:
        assert len(items) == 7 and items.format == "8s8sdqxxxxxx?xxxxxxxx?q"
        assert items.count(42) == 1 and items.index(None) == 4 and items[-1] == 42
        assert repr(items) == f"ShareableList({list(items)}, name={items.shm.name!r})"
        with pytest.raises(ValueError):
            items.index("100")
        for at in (7, -8):
            with pytest.raises(IndexError):
                items[at]
            with pytest.raises(IndexError):
                items[at] = 1
        for at in range(7):
            for value in (1, -(2**63), 0.5, True, None, "12345678", b"12345678", "", b""):
                items[at] = value
                assert items[at] == value and type(items[at]) is type(value)
            with pytest.raises(ValueError):
                items[at] = "123456789"
            with pytest.raises(struct.error):
                items[at] = 2**63
            with pytest.raises((KeyError, TypeError)):
                items[at] = [1]
            assert items[at] == b""
        copied = ShareableList(items, name=f"bunshin-list-{os.getpid()}")
        assert list(copied) == list(items)
        copied.shm.unlink()
        copied.shm.close()
    finally:
        items.shm.unlink()
        items.shm.close()


def test_lists_that_cannot_be_made_leave_nothing():
    before = set(os.listdir("/dev/shm"))
    for wrong in ([[1]], [2**64], [object()]):
        with pytest.raises((KeyError, TypeError, struct.error)):
            ShareableList(wrong)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")]


def test_memory_that_is_no_list_is_refused():
    generator = random.Random(5)
    memory = SharedMemory(create=True, size=200)
    for _ in range(300):
        memory.buf[:] = bytes(generator.randrange(256) for _ in range(200))
        memory.buf[:8] = struct.pack("q", generator.choice([-1, 0, 1, 3, 11, 12, 2**40, 2**62]))
        try:
            items = ShareableList(name=memory.name)
        except ValueError:
            continue
        for at in range(len(items)):
            try:
                items[at]
            except (struct.error, ValueError, IndexError):
                # Whatever is wrong with it, it is an error.
                pass
        items.shm.close()
    memory.unlink()
    memory.close()


def test_the_tracker_of_other_resources_still_works():
    program = (
        "import os\n"
        "from bunshin import resource_tracker\n"
        "resource_tracker.ensure_running()\n"
        "os.fstat(resource_tracker.getfd())\n"
        "assert resource_tracker._resource_tracker._check_alive()\n"
        "from multiprocessing.synchronize import Lock\n"
        "import multiprocessing\n"
        "name = multiprocessing.get_context('spawn').Lock()._semlock.name\n"
        "resource_tracker.register(name, 'semaphore')\n"
        "resource_tracker.unregister(name, 'semaphore')\n"
        "print('done')\n"
    )
    assert python(program) == "done"
