"""Every public name that CPython's documentation has for `multiprocessing`, as of 3.14, is there,
under each CPython on the machine."""

import glob
import os
import shutil
import subprocess
import sys

import pytest

import bunshin

#: What to make an object with, and the names that the documentation gives it.
SURFACE = {
    "mp": """
        Process Pipe Queue SimpleQueue JoinableQueue Lock RLock Semaphore BoundedSemaphore Condition
        Event Barrier Value Array RawValue RawArray Pool Manager active_children cpu_count
        current_process parent_process freeze_support get_all_start_methods get_context
        get_start_method set_start_method set_executable set_forkserver_preload get_logger
        log_to_stderr allow_connection_pickling reducer ProcessError BufferTooShort
        AuthenticationError TimeoutError connection context dummy heap managers pool process
        queues reduction resource_sharer resource_tracker shared_memory sharedctypes spawn
        synchronize util forkserver popen_fork popen_spawn_posix popen_forkserver""",
    "mp.Process": """
        run start join name is_alive daemon pid exitcode authkey sentinel interrupt terminate
        kill close ident""",
    "mp.get_context('spawn')": """
        Process Pipe Queue SimpleQueue JoinableQueue Lock RLock Semaphore BoundedSemaphore Condition
        Event Barrier Value Array RawValue RawArray Pool Manager active_children cpu_count
        current_process parent_process freeze_support get_context get_start_method
        set_start_method set_executable set_forkserver_preload get_logger log_to_stderr
        allow_connection_pickling reducer ProcessError BufferTooShort AuthenticationError
        TimeoutError""",
    "mp.connection": """
        Connection Listener Client Pipe wait deliver_challenge answer_challenge""",
    "mp.Pipe()[0]": """
        send recv fileno close poll send_bytes recv_bytes recv_bytes_into closed readable writable
        __enter__ __exit__""",
    "mp.connection.Listener()": "accept close address last_accepted __enter__ __exit__",
    "mp.Queue()": """
        qsize empty full put put_nowait get get_nowait close join_thread cancel_join_thread""",
    "mp.SimpleQueue()": "close empty get put",
    "mp.JoinableQueue()": """
        qsize empty full put put_nowait get get_nowait close join_thread cancel_join_thread
        task_done join""",
    "mp.Lock()": "acquire release locked __enter__ __exit__",
    "mp.RLock()": "acquire release locked __enter__ __exit__",
    "mp.Semaphore()": "acquire release get_value locked __enter__ __exit__",
    "mp.BoundedSemaphore()": "acquire release get_value locked __enter__ __exit__",
    "mp.Condition()": "acquire release locked wait wait_for notify notify_all __enter__ __exit__",
    "mp.Event()": "is_set set clear wait",
    "mp.Barrier(1)": "wait reset abort parties n_waiting broken",
    "mp.synchronize": "SemLock Lock RLock Semaphore BoundedSemaphore Condition Event Barrier",
    "mp.Value('i')": "value get_lock get_obj acquire release __enter__ __exit__",
    "mp.Array('i', 2)": """
        get_lock get_obj acquire release __len__ __getitem__ __setitem__ __enter__ __exit__""",
    "mp.Array('c', 2)": "value raw",
    "mp.sharedctypes": """
        RawValue RawArray Value Array copy synchronized Synchronized SynchronizedArray
        SynchronizedString""",
    "mp.heap": "Arena BufferWrapper Heap",
    "mp.shared_memory": "SharedMemory ShareableList",
    "mp.shared_memory.SharedMemory": "buf close name size unlink",
    "mp.shared_memory.ShareableList([1])": "count index format shm __len__ __getitem__ __setitem__",
    "mp.managers": """
        BaseManager SyncManager SharedMemoryManager BaseProxy Namespace NamespaceProxy Token Server
        RemoteError ValueProxy ArrayProxy ListProxy DictProxy IteratorProxy AcquirerProxy
        ConditionProxy EventProxy BarrierProxy PoolProxy MakeProxyType AutoProxy dispatch
        public_methods""",
    "mp.managers.BaseManager": """
        start connect get_server join register address __enter__ __exit__""",
    # Only with a server is there one to shut down.
    "mp.Manager()": "shutdown",
    "mp.managers.SyncManager": """
        Barrier BoundedSemaphore Condition Event JoinableQueue Lock Namespace Pool Queue RLock
        Semaphore Array Value dict list set start connect get_server join register
        address""",
    "mp.Manager().Lock()": "acquire release locked __enter__ __exit__",
    "mp.Manager().RLock()": "acquire release locked __enter__ __exit__",
    "mp.Manager().Condition()": """
        acquire release locked wait wait_for notify notify_all __enter__ __exit__""",
    "mp.managers.SharedMemoryManager": """
        SharedMemory ShareableList start connect get_server join register address""",
    "mp.managers.Server": "serve_forever",
    "mp.managers.BaseProxy": "_callmethod _getvalue __repr__ __str__",
    "mp.pool": "Pool ThreadPool AsyncResult ApplyResult MapResult IMapIterator MaybeEncodingError",
    "mp.pool.Pool": """
        apply apply_async map map_async imap imap_unordered starmap starmap_async close terminate
        join Process __enter__ __exit__""",
    "mp.pool.ThreadPool": """
        apply apply_async map map_async imap imap_unordered starmap starmap_async close terminate
        join""",
    "mp.pool.AsyncResult": "get wait ready successful __class_getitem__",
    "mp.pool.IMapIterator": "next __next__ __iter__",
    "mp.reduction": """
        ForkingPickler DupFd send_handle recv_handle sendfds recvfds dump register
        AbstractReducer""",
    "mp.reduction.ForkingPickler": "register dumps loads",
    "mp.resource_tracker": "ensure_running register unregister",
    "mp.util": """
        Finalize get_logger log_to_stderr register_after_fork sub_debug debug info
        sub_warning get_temp_dir is_exiting""",
    "mp.context": """
        BaseContext DefaultContext ForkContext SpawnContext ForkServerContext Process ForkProcess
        SpawnProcess ForkServerProcess ProcessError BufferTooShort TimeoutError
        AuthenticationError""",
    "mp.dummy": """
        Process Pool Manager Pipe Queue JoinableQueue Lock RLock Semaphore BoundedSemaphore
        Condition Event Barrier current_process active_children freeze_support Value Array
        Namespace dict list""",
    "mp.ProcessPoolExecutor": "submit map shutdown terminate_workers kill_workers",
}

MODULES = """
    connection context dummy forkserver heap managers pool popen_fork popen_forkserver
    popen_spawn_posix process queues reduction resource_sharer resource_tracker shared_memory
    sharedctypes spawn synchronize util""".split()

PROGRAM = f"""
import importlib
import inspect
import bunshin as mp

SURFACE = {SURFACE!r}

for name in {MODULES!r}:
    importlib.import_module("bunshin." + name)
missing = []
for made, names in SURFACE.items():
    found = eval(made)
    for name in names.split():
        if not hasattr(found, name):
            missing.append(made + " " + name)
parameters = [
    (mp.shared_memory.SharedMemory, "name create size track"),
    (mp.Pool, "processes initializer initargs maxtasksperchild"),
    (mp.Process.__init__, "group target name args kwargs daemon"),
    (mp.connection.Listener.__init__, "address family backlog authkey"),
    (mp.connection.Client, "address family authkey"),
    (mp.connection.wait, "object_list timeout"),
    (mp.managers.BaseManager.__init__, "address authkey serializer ctx shutdown_timeout"),
    (mp.managers.BaseManager.register,
     "typeid callable proxytype exposed method_to_typeid create_method"),
    (mp.ProcessPoolExecutor.__init__,
     "max_workers mp_context initializer initargs max_tasks_per_child"),
    (mp.ProcessPoolExecutor.map, "fn timeout chunksize buffersize"),
    (mp.ProcessPoolExecutor.shutdown, "wait cancel_futures"),
]
for function, names in parameters:
    known = inspect.signature(function).parameters
    missing += [f"{{function}} {{name}}=" for name in names.split() if name not in known]
print(missing)
"""


def interpreters():
    """One of each version that the package is for."""
    candidates = [sys.executable]
    candidates += filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 20)))
    candidates += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/*/bin/python3")))
    found = {}
    ask = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    for candidate in candidates:
        told = subprocess.run([candidate, "-c", ask], capture_output=True, text=True)
        words = told.stdout.split()
        if told.returncode == 0 and words[0] == "cpython":
            major, minor = map(int, words[1:])
            if (major, minor) >= (3, 11):
                found.setdefault(f"{major}.{minor}", candidate)
    return found


@pytest.mark.parametrize("version", interpreters().items(), ids=lambda item: item[0])
def test_every_documented_name_is_there(version):
    import cloudpickle

    files = [module.__file__ for module in (bunshin, cloudpickle)]
    places = [os.path.dirname(os.path.dirname(file)) for file in files]
    done = subprocess.run(
        [version[1], "-c", PROGRAM],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(places)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr
