# The executor interface over the pool.

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from .pool import BrokenPool, WorkerLost

__all__ = ["BrokenInitializer", "ProcessPoolExecutor", "TaskLost"]

_T = TypeVar("_T")

class TaskLost(WorkerLost, BrokenProcessPool): ...
class BrokenInitializer(BrokenPool, BrokenProcessPool): ...

class ProcessPoolExecutor(Executor):
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None: ...
    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]: ...
    def terminate_workers(self) -> None: ...
    def kill_workers(self) -> None: ...
