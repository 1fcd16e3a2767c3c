# Threads with the interface of processes: of the same types as in `multiprocessing`.

from multiprocessing.dummy import (
    Process as Process,
    current_process as current_process,
    active_children as active_children,
    freeze_support as freeze_support,
    Lock as Lock,
    RLock as RLock,
    Semaphore as Semaphore,
    BoundedSemaphore as BoundedSemaphore,
    Condition as Condition,
    Event as Event,
    Barrier as Barrier,
    Queue as Queue,
    Manager as Manager,
    Pipe as Pipe,
    Pool as Pool,
    JoinableQueue as JoinableQueue,
)

from . import connection as connection
