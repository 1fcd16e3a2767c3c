# A drop-in for `multiprocessing`: its types, and those of what is new.

from multiprocessing import (
    AuthenticationError as AuthenticationError,
    BufferTooShort as BufferTooShort,
    JoinableQueue as JoinableQueue,
    Process as Process,
    ProcessError as ProcessError,
    Queue as Queue,
    SimpleQueue as SimpleQueue,
    TimeoutError as TimeoutError,
    active_children as active_children,
    current_process as current_process,
    freeze_support as freeze_support,
    parent_process as parent_process,
)

from . import connection as connection, context as context, reduction as reducer
from .context import AbandonedLock as AbandonedLock, LostItems as LostItems
from .pool import BrokenPool as BrokenPool, Cancelled as Cancelled, WorkerLost as WorkerLost
from .executor import ProcessPoolExecutor as ProcessPoolExecutor
from .sharedctypes import Array as Array

__all__ = [
    "AbandonedLock",
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BrokenPool",
    "BufferTooShort",
    "Cancelled",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "LostItems",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "TimeoutError",
    "Value",
    "WorkerLost",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]

Barrier = context._default_context.Barrier
BoundedSemaphore = context._default_context.BoundedSemaphore
Condition = context._default_context.Condition
Event = context._default_context.Event
Lock = context._default_context.Lock
Manager = context._default_context.Manager
Pipe = context._default_context.Pipe
Pool = context._default_context.Pool
RLock = context._default_context.RLock
RawArray = context._default_context.RawArray
RawValue = context._default_context.RawValue
Semaphore = context._default_context.Semaphore
Value = context._default_context.Value
allow_connection_pickling = context._default_context.allow_connection_pickling
cpu_count = context._default_context.cpu_count
get_all_start_methods = context._default_context.get_all_start_methods
get_context = context._default_context.get_context
get_logger = context._default_context.get_logger
get_start_method = context._default_context.get_start_method
log_to_stderr = context._default_context.log_to_stderr
set_executable = context._default_context.set_executable
set_forkserver_preload = context._default_context.set_forkserver_preload
set_start_method = context._default_context.set_start_method

SUBDEBUG: int
SUBWARNING: int
