# Pipes between threads: of the same types as in `multiprocessing`.

from multiprocessing.dummy.connection import Client as Client, Listener as Listener, Pipe as Pipe
