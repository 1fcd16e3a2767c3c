# Contexts: the types of `multiprocessing.context`, whose pools and arrays can do more here.

import multiprocessing.context as _own
from collections.abc import Callable, Iterable
from multiprocessing.context import (
    AuthenticationError as AuthenticationError,
    BaseContext as BaseContext,
    BufferTooShort as BufferTooShort,
    ForkProcess as ForkProcess,
    ForkServerProcess as ForkServerProcess,
    Process as Process,
    ProcessError as ProcessError,
    SpawnProcess as SpawnProcess,
    TimeoutError as TimeoutError,
    assert_spawning as assert_spawning,
    get_spawning_popen as get_spawning_popen,
    set_spawning_popen as set_spawning_popen,
)
from typing import Any, Literal, overload

from .pool import Pool as _Pool

__all__ = ()

class AbandonedLock(ProcessError): ...

class LostItems(ProcessError):
    count: int
    def __init__(self, count: int) -> None: ...

class _Methods:
    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> _Pool: ...

class ForkContext(_Methods, _own.ForkContext): ...
class SpawnContext(_Methods, _own.SpawnContext): ...
class ForkServerContext(_Methods, _own.ForkServerContext): ...

class DefaultContext(_Methods, _own.DefaultContext):
    @overload
    def get_context(self, method: None = None) -> DefaultContext: ...
    @overload
    def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...
    @overload
    def get_context(self, method: Literal["fork"]) -> ForkContext: ...
    @overload
    def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...
    @overload
    def get_context(self, method: str) -> BaseContext: ...

_default_context: DefaultContext
