"""ctypes objects in shared memory, with a lock or without.

Values and arrays of simple types are read and written by the engine, lock included, in one call;
the ctypes object is made of the same memory when it is asked for.
"""

import ctypes
import functools
import weakref

from . import _native, get_context, heap, synchronize
from .context import assert_spawning
from .reduction import ForkingPickler

__all__ = ["Array", "RawArray", "RawValue", "Value", "copy", "synchronized"]

typecode_to_type = {
    "c": ctypes.c_char,
    "u": ctypes.c_wchar,
    "b": ctypes.c_byte,
    "B": ctypes.c_ubyte,
    "h": ctypes.c_short,
    "H": ctypes.c_ushort,
    "i": ctypes.c_int,
    "I": ctypes.c_uint,
    "l": ctypes.c_long,
    "L": ctypes.c_ulong,
    "q": ctypes.c_longlong,
    "Q": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
}

#: The types that the engine knows how to read. Classes derived from them are ctypes' to read.
_SIMPLE = {*typecode_to_type.values(), ctypes.c_bool}


def _type_of(typecode_or_type):
    type_ = typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(type_, str):
        known = "".join(typecode_to_type)
        raise TypeError(f"bad typecode {type_!r}: it must be one of {known!r}, or a ctypes type")
    return type_


def rebuild_ctype(type_, wrapper, length):
    """Makes the ctypes object that lies in a block; an array, if there is a length."""
    if length is not None:
        type_ = type_ * length
    if type_ not in ForkingPickler._extra_reducers:
        ForkingPickler.register(type_, reduce_ctype)
    obj = type_.from_buffer(wrapper.create_memoryview())
    obj._wrapper = wrapper
    return obj


def reduce_ctype(obj):
    """Pickles a ctypes object in shared memory for a child that is being started."""
    wrapper = getattr(obj, "_wrapper", None)
    if wrapper is None:
        # Of the same type as one that is shared, but not shared itself.
        return obj.__reduce_ex__(2)
    assert_spawning(obj)
    if isinstance(obj, ctypes.Array):
        return rebuild_ctype, (obj._type_, wrapper, obj._length_)
    return rebuild_ctype, (type(obj), wrapper, None)


def _new(type_, length=None):
    size = ctypes.sizeof(type_ if length is None else type_ * length)
    return rebuild_ctype(type_, heap.BufferWrapper(size), length)


def RawValue(typecode_or_type, *args):
    """Returns a ctypes object in shared memory."""
    obj = _new(_type_of(typecode_or_type))
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type, size_or_initializer):
    """Returns a ctypes array in shared memory: so many zeros, or what the initializer has."""
    type_ = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new(type_, _length(size_or_initializer))
    obj = _new(type_, len(size_or_initializer))
    obj.__init__(*size_or_initializer)
    return obj


def _length(size):
    if size < 0:
        raise ValueError(f"an array cannot have {size} items")
    return size


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """Returns a value in shared memory with a lock; without one if `lock` is false."""
    if lock is False:
        return RawValue(typecode_or_type, *args)
    type_ = _type_of(typecode_or_type)
    if lock is True or lock is None:
        wrapper, lock = _locked(ctypes.sizeof(type_))
    else:
        _check_lock(lock)
        wrapper = heap.BufferWrapper(ctypes.sizeof(type_))
    if type_ in _SIMPLE:
        value = Synchronized(_place(wrapper, type_, None), lock, ctx)
        if args:
            type_.__init__(value.get_obj(), *args)
        return value
    obj = rebuild_ctype(type_, wrapper, None)
    obj.__init__(*args)
    return synchronized(obj, lock, ctx)


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """Returns an array in shared memory with a lock; without one if `lock` is false."""
    if lock is False:
        return RawArray(typecode_or_type, size_or_initializer)
    type_ = _type_of(typecode_or_type)
    if isinstance(size_or_initializer, int):
        length, items = _length(size_or_initializer), None
    else:
        length, items = len(size_or_initializer), size_or_initializer
    if lock is True or lock is None:
        wrapper, lock = _locked(ctypes.sizeof(type_ * length))
    else:
        _check_lock(lock)
        wrapper = heap.BufferWrapper(ctypes.sizeof(type_ * length))
    if type_ in _SIMPLE and type_ is not ctypes.c_char:
        array = SynchronizedArray(_place(wrapper, type_, length), lock, ctx)
        if items is not None:
            if type(items) not in (list, tuple):
                items = list(items)
            if type_ is ctypes.c_wchar:
                array.get_obj().__init__(*items)
            else:
                array[:] = items
        return array
    obj = rebuild_ctype(type_, wrapper, length)
    if items is not None:
        obj.__init__(*items)
    return synchronized(obj, lock, ctx)


def _locked(size):
    """A block with a lock of its own, and that lock."""
    block = _native.Block(size, True)
    return heap._wrap(block), synchronize._rebuild(synchronize.RLock, block)


def _check_lock(lock):
    if not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")


def _new_lock(ctx):
    return (ctx or get_context()).RLock()


def _place(wrapper, type_, length):
    """Where values of a simple type lie, for the engine."""
    return _native.Place.of(
        wrapper._block,
        type_._type_,
        ctypes.sizeof(type_),
        1 if length is None else length,
        functools.partial(rebuild_ctype, type_, wrapper, length),
    )


def _place_of(obj):
    """Where a ctypes object lies, if the engine can read it there."""
    block = getattr(getattr(obj, "_wrapper", None), "_block", None)
    if not isinstance(block, _native.Block):
        return None
    type_ = type(obj)
    is_array = isinstance(obj, ctypes.Array)
    item = type_._type_ if is_array else type_
    if item not in _SIMPLE or ctypes.sizeof(obj) != block.size:
        return None
    length = len(obj) if is_array else 1
    return _native.Place.of(block, item._type_, ctypes.sizeof(item), length, None)


def copy(obj):
    """Returns a copy of a ctypes object, in shared memory."""
    new = _new(type(obj))
    ctypes.memmove(ctypes.addressof(new), ctypes.addressof(obj), ctypes.sizeof(obj))
    return new


def synchronized(obj, lock=None, ctx=None):
    """Wraps a ctypes object with a lock, by default a new one that may be taken again."""
    assert not isinstance(obj, _native.SynchronizedBase), "it has a lock already"
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        is_string = obj._type_ is ctypes.c_char
        return (SynchronizedString if is_string else SynchronizedArray)(obj, lock, ctx)
    return _class_for(type(obj))(obj, lock, ctx)


#: Wrappers of structures and unions, by their classes.
_classes = weakref.WeakKeyDictionary()


def _class_for(type_):
    try:
        return _classes[type_]
    except KeyError:
        pass
    names = {}
    for ancestor in reversed(type_.__mro__):
        for field in ancestor.__dict__.get("_fields_", ()):
            names[field[0]] = make_property(field[0])
    made = type("Synchronized" + type_.__name__, (SynchronizedBase,), names)
    _classes[type_] = made
    return made


@functools.cache
def make_property(name):
    """A property that reads and writes that attribute of the object with the lock held."""

    def read(self):
        with self._lock:
            return getattr(self._obj, name)

    def write(self, value):
        with self._lock:
            setattr(self._obj, name, value)

    return property(read, write)


class SynchronizedBase(_native.SynchronizedBase):
    """A ctypes object and the lock that goes with it."""

    def __init__(self, obj, lock=None, ctx=None):
        pass


class Synchronized(_native.SynchronizedValue, SynchronizedBase):
    """A value of a simple type and its lock."""


class SynchronizedArray(_native.SynchronizedItems, SynchronizedBase):
    """An array and its lock."""

    def as_numpy(self):
        """Returns a numpy array over the same memory. Its accesses take no lock."""
        import numpy

        obj = self.get_obj()
        dtype = "U1" if obj._type_ is ctypes.c_wchar else numpy.dtype(obj._type_)
        return numpy.ndarray(len(obj), dtype, obj)


class SynchronizedString(SynchronizedArray):
    """An array of characters and its lock."""

    value = property(_native.SynchronizedItems._value, _native.SynchronizedItems._set_value)
    raw = property(_native.SynchronizedItems._raw, _native.SynchronizedItems._set_raw)
