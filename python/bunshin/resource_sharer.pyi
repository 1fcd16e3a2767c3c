# Descriptors that other processes ask for: of the same types as in `multiprocessing`.

import socket
from multiprocessing.resource_sharer import (
    DupFd as DupFd,
    stop as stop,
)

class DupSocket:
    def __init__(self, sock: socket.socket) -> None: ...
    def detach(self) -> socket.socket: ...
