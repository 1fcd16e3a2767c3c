# Pools: the types of `multiprocessing.pool`, and what is new beside it.

import multiprocessing.pool as _own
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.context import ProcessError
from multiprocessing.pool import IMapIterator as IMapIterator
from multiprocessing.pool import IMapUnorderedIterator as IMapUnorderedIterator
from multiprocessing.pool import ThreadPool as ThreadPool
from typing import Any, TypeVar

__all__ = ["Pool", "ThreadPool"]

_S = TypeVar("_S")
_T = TypeVar("_T")

class WorkerLost(ProcessError):
    pid: int | None
    exitcode: int | None
    out_of_memory: bool
    peak_memory: int | None
    stderr: str
    def __init__(
        self,
        text: str,
        pid: int | None = None,
        exitcode: int | None = None,
        out_of_memory: bool = False,
        peak_memory: int | None = None,
        stderr: str = "",
    ) -> None: ...

class BrokenPool(ProcessError): ...
class Cancelled(ProcessError): ...

class ApplyResult(_own.ApplyResult[_T]):
    def cancel(self, kill: bool = False) -> bool: ...

AsyncResult = ApplyResult

class MapResult(_own.MapResult[_T]):
    def __init__(
        self,
        pool: Pool,
        callback: Callable[[list[_T]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None: ...
    def cancel(self, kill: bool = False) -> bool: ...

class Pool(_own.Pool):
    def apply_async(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[_T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> ApplyResult[_T]: ...
    def map_async(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[_T]: ...
    def starmap_async(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[_T]: ...
