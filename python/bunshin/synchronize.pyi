# Locks and what is made of them: of the same types as in `multiprocessing`.

from multiprocessing.synchronize import (
    Barrier as Barrier,
    BoundedSemaphore as BoundedSemaphore,
    Condition as Condition,
    Event as Event,
    Lock as Lock,
    RLock as RLock,
    Semaphore as Semaphore,
    SemLock as SemLock,
)
