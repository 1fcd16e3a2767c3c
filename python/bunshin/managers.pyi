# Objects that live in a server process, and their proxies: of the same types as in `multiprocessing`.

from multiprocessing.managers import (
    BaseListProxy as BaseListProxy,
    BaseManager as BaseManager,
    BaseProxy as BaseProxy,
    ListProxy as ListProxy,
    Namespace as Namespace,
    RemoteError as RemoteError,
    Server as Server,
    SharedMemoryManager as SharedMemoryManager,
    SharedMemoryServer as SharedMemoryServer,
    SyncManager as SyncManager,
    Token as Token,
    ValueProxy as ValueProxy,
)
