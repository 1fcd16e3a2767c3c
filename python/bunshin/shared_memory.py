"""Shared memory with a name, and lists in it.

Any process of the same user can open it by its name, those of plain CPython included. The name is
removed when the process that made it is killed, and at the end of the program otherwise, if
nobody has removed it before. Opening a memory never makes anybody its owner.
"""

import errno
import functools
import os
import secrets
import struct
import types

from . import _names, _native

__all__ = ["ShareableList", "SharedMemory"]

_USE_POSIX = True
_SHM_NAME_PREFIX = "/psm_"


def _make_filename():
    return _SHM_NAME_PREFIX + secrets.token_hex(4)


class SharedMemory:
    """A block of memory that processes share by its name.

    With `create`, a new one of `size` bytes, under a new name if none is given; all of its memory
    exists from then on. Otherwise the one that has the name. `close` lets go of it in this
    process, `unlink` removes the name. If `track` is false, a new memory stays until somebody
    unlinks it, whatever becomes of this process.
    """

    _name = None
    _memory = None
    _buf = None
    _flags = os.O_RDWR
    _track = True

    def __init__(self, name=None, create=False, size=0, *, track=True):
        if not size >= 0:
            raise ValueError("'size' must be a positive integer")
        if create:
            self._flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
            if size == 0:
                raise ValueError("'size' must be a positive number different from zero")
        if name is None and not self._flags & os.O_EXCL:
            raise ValueError("'name' can only be None if create=True")
        self._track = bool(track)
        if name is not None:
            self._name = "/" + name
            self._memory = self._open(size)
        while self._memory is None:
            self._name = _make_filename()
            try:
                self._memory = self._open(size)
            except FileExistsError:
                pass
        self._size = self._memory.size
        self._buf = self._memory.view()

    def _open(self, size):
        name = _file_name(self._name)
        if not self._flags & os.O_EXCL:
            try:
                return _native.NamedMemory.open(name)
            except FileNotFoundError:
                if not self._flags & os.O_CREAT:
                    raise FileNotFoundError(
                        errno.ENOENT, os.strerror(errno.ENOENT), self._name
                    ) from None
        _names.prepare()
        try:
            return _native.NamedMemory.create(name, size, self._track)
        except FileExistsError:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._name) from None

    def __del__(self):
        try:
            self.close()
        except (OSError, BufferError):
            # Views of it are left; it goes with the last of them.
            pass

    def __reduce__(self):
        return type(self), (self.name, False, self.size)

    def __repr__(self):
        return f"{type(self).__name__}({self.name!r}, size={self.size})"

    @property
    def buf(self):
        """A view of the memory; nothing once it is closed."""
        return self._buf

    @property
    def name(self):
        """The name by which others can open it."""
        return self._name.removeprefix("/")

    @property
    def size(self):
        """How many bytes there are."""
        return self._size

    def close(self):
        """Lets go of the memory in this process. Its name stays.

        Not while there are views of it: that is a `BufferError`. What cannot be seen as one, such
        as a numpy array made with `buf` as its buffer, keeps the memory until it goes itself.
        """
        if self._buf is not None:
            self._buf.release()
            self._buf = None
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def unlink(self):
        """Removes the name. The memory stays for those who have it open."""
        if self._name:
            _native.unlink_memory(_file_name(self._name))


def _file_name(name):
    """The name as the engine wants it, or an error as the system gives it for such names."""
    name = name.lstrip("/")
    if "\0" in name:
        raise ValueError("embedded null character")
    wrong = None
    if not name or "/" in name or name in (".", ".."):
        wrong = errno.EINVAL
    elif len(os.fsencode(name)) > 255:
        wrong = errno.ENAMETOOLONG
    if wrong:
        raise OSError(wrong, os.strerror(wrong), "/" + name)
    return name


#: How an item of a type is packed, but for text and bytes.
_FORMATS = {int: "q", float: "d", bool: "xxxxxxx?", type(None): "xxxxxx?x"}
#: What to make of an item that was unpacked, by the code that is kept with it.
_RESTORE = (
    lambda value: value,
    lambda value: value.rstrip(b"\0").decode(),
    lambda value: value.rstrip(b"\0"),
    lambda value: None,
)
_WORD = 8


def _code_of(value):
    if isinstance(value, str):
        return 1
    if isinstance(value, bytes):
        return 2
    return 3 if value is None else 0


class ShareableList:
    """A list of numbers, truth values, text, bytes and `None` in shared memory.

    It cannot grow or shrink, and text and bytes not beyond the room that the first ones had. As
    zeros fill that room, those at the end of an item are lost. There is no lock in it.
    """

    # The number of items; where each one starts in the data, and where the last one ends; the
    # data; the format of each item, in eight bytes; a code for each item, in one byte.

    def __init__(self, sequence=None, *, name=None):
        if name is not None and sequence is None:
            self.shm = SharedMemory(name)
            try:
                self._attach()
            except BaseException:
                self.shm.close()
                raise
            return
        packed = [self._pack(item) for item in sequence or ()]
        offsets = [0]
        for data, _, _ in packed:
            offsets.append(offsets[-1] + len(data))
        count = len(packed)
        whole = b"".join(
            [
                struct.pack(f"{count + 2}q", count, *offsets),
                *(data for data, _, _ in packed),
                *(form.ljust(_WORD, b"\0") for _, form, _ in packed),
                bytes(code for _, _, code in packed),
            ]
        )
        self.shm = SharedMemory(name, create=True, size=len(whole))
        self.shm.buf[: len(whole)] = whole
        self._place(count, offsets)

    @staticmethod
    def _pack(item):
        """The item as bytes, with its format and code."""
        code = _code_of(item)
        if code in (1, 2):
            data = item.encode() if code == 1 else bytes(item)
            # As CPython has it; but text that takes more than a byte for a letter fits too.
            room = _WORD * max(len(item) // _WORD + 1, -(-len(data) // _WORD))
            form = b"%ds" % room
            if len(form) > _WORD:
                raise ValueError(f"an item of {len(data)} bytes is too long")
            return data.ljust(room, b"\0"), form, code
        form = _FORMATS[type(item)]
        return struct.pack(form, item), form.encode(), code

    def _attach(self):
        """Finds its way in a memory that somebody else has made."""
        size = self.shm.size
        count = struct.unpack_from("q", self.shm.buf)[0] if size >= _WORD else -1
        # Each item takes its offset, its format and its code at least.
        if not 0 <= count <= (size - 2 * _WORD) // (2 * _WORD + 1):
            raise ValueError(f"there is no list in {self.shm!r}")
        self._place(count, list(struct.unpack_from(f"{count + 1}q", self.shm.buf, _WORD)))

    def _place(self, count, offsets):
        self._count = count
        self._offsets = offsets
        self._data = (count + 2) * _WORD
        self._forms = self._data + offsets[-1]
        self._codes = self._forms + count * _WORD

    def _index(self, position, why):
        at = position + self._count if position < 0 else position
        if not 0 <= at < self._count:
            raise IndexError(why)
        return at

    def _get_packing_format(self, position):
        at = self._index(position, "index out of range")
        return self._form(at).decode()

    def _form(self, at):
        (form,) = struct.unpack_from("8s", self.shm.buf, self._forms + at * _WORD)
        return form.rstrip(b"\0")

    def __getitem__(self, position):
        at = self._index(position, "index out of range")
        buf = self.shm.buf
        (value,) = struct.unpack_from(self._form(at), buf, self._data + self._offsets[at])
        return _RESTORE[buf[self._codes + at]](value)

    def __setitem__(self, position, value):
        at = self._index(position, "assignment index out of range")
        code = _code_of(value)
        if code in (1, 2):
            room = self._offsets[at + 1] - self._offsets[at]
            value = value.encode() if code == 1 else value
            if len(value) > room:
                raise ValueError("bytes/str item exceeds available storage")
            form = b"%ds" % room
        else:
            form = _FORMATS[type(value)].encode()
        # Packed first: a number that does not fit changes nothing.
        data = struct.pack(form, value)
        buf, start = self.shm.buf, self._data + self._offsets[at]
        struct.pack_into("8s", buf, self._forms + at * _WORD, form)
        buf[self._codes + at] = code
        buf[start : start + len(data)] = data

    def __reduce__(self):
        return functools.partial(type(self), name=self.shm.name), ()

    def __len__(self):
        return self._count

    def __iter__(self):
        return map(self.__getitem__, range(self._count))

    def __repr__(self):
        return f"{type(self).__name__}({list(self)}, name={self.shm.name!r})"

    @property
    def format(self):
        """How the items are packed now, as the `struct` module has it."""
        return b"".join(map(self._form, range(self._count))).decode()

    def count(self, value):
        """How many items are equal to `value`."""
        return sum(value == item for item in self)

    def index(self, value):
        """Where the first item is that is equal to `value`; a `ValueError` if there is none."""
        for position, item in enumerate(self):
            if value == item:
                return position
        raise ValueError(f"{value!r} not in this container")

    __class_getitem__ = classmethod(types.GenericAlias)
