"""Messages over multiprocessing.Pipe; prints seconds a round trip or a message.

The same as workload/link.rs does, as far as Python can: a number in front of each message,
batches that grow until one takes a twentieth of the budget, then the median of batches.
"""

import os
import sys
import time
from multiprocessing import Pipe

pattern, size, budget, near_core, far_core = sys.argv[1:]
size, budget = int(size), float(budget)
near, far = Pipe()
child = os.fork()
if child == 0:
    os.sched_setaffinity(0, {int(far_core)})
    near.close()
    count = 0
    while True:
        message = far.recv_bytes()
        number = int.from_bytes(message[:8], "little")
        count += 1
        if number == 0:
            os._exit(0)
        if pattern == "round-trip":
            far.send_bytes(message)
        elif number & 1 << 62:
            far.send_bytes(count.to_bytes(8, "little"))
os.sched_setaffinity(0, {int(near_core)})
far.close()
buffer = bytearray(size)
sent = 0


def batch(n_messages):
    global sent
    for left in range(n_messages - 1, -1, -1):
        sent += 1
        one_way_end = pattern == "one-way" and left == 0
        buffer[:8] = (sent | (1 << 62 if one_way_end else 0)).to_bytes(8, "little")
        near.send_bytes(buffer)
        if pattern == "round-trip" and near.recv_bytes() != buffer:
            sys.exit("another message came back")
    if pattern == "one-way" and int.from_bytes(near.recv_bytes(), "little") != sent:
        sys.exit("messages were lost")


def timed(n_messages):
    start = time.perf_counter()
    batch(n_messages)
    return time.perf_counter() - start


n = 1
while timed(n) < budget / 20:
    n *= 2
samples = []
start = time.perf_counter()
while len(samples) < 5 or time.perf_counter() - start < budget:
    samples.append(timed(n) / n)
buffer[:8] = bytes(8)
near.send_bytes(buffer)
os.waitpid(child, 0)
print(sorted(samples)[len(samples) // 2])
