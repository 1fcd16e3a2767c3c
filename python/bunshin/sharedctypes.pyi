# Values and arrays in shared memory: the types of `multiprocessing.sharedctypes`.

import ctypes
import multiprocessing.sharedctypes as _own
from collections.abc import Callable, Sequence
from ctypes import _CData, _SimpleCData, c_char
from multiprocessing.context import BaseContext
from multiprocessing.sharedctypes import (
    RawArray as RawArray,
    RawValue as RawValue,
    Synchronized as Synchronized,
    SynchronizedBase as SynchronizedBase,
    Value as Value,
    copy as copy,
    synchronized as synchronized,
)
from multiprocessing.synchronize import _LockLike
from typing import Any, Literal, TypeVar, overload

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

_T = TypeVar("_T")

class SynchronizedArray(_own.SynchronizedArray[_T]):
    # A numpy array over the same memory.
    def as_numpy(self) -> Any: ...

class SynchronizedString(SynchronizedArray[bytes]):
    value: bytes
    raw: bytes

@overload
def Array(
    typecode_or_type: type[_SimpleCData[_T]],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[False],
    ctx: BaseContext | None = None,
) -> ctypes.Array[_SimpleCData[_T]]: ...
@overload
def Array(
    typecode_or_type: type[c_char],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[True] | _LockLike = True,
    ctx: BaseContext | None = None,
) -> SynchronizedString: ...
@overload
def Array(
    typecode_or_type: type[_SimpleCData[_T]],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[True] | _LockLike = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[_T]: ...
@overload
def Array(
    typecode_or_type: str,
    size_or_initializer: int | Sequence[Any],
    *,
    lock: Literal[True] | _LockLike = True,
    ctx: BaseContext | None = None,
) -> SynchronizedArray[Any]: ...
@overload
def Array(
    typecode_or_type: str | type[_CData],
    size_or_initializer: int | Sequence[Any],
    *,
    lock: bool | _LockLike = True,
    ctx: BaseContext | None = None,
) -> Any: ...
