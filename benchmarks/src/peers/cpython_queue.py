"""Prints seconds an item, or a round trip, through multiprocessing.Queue."""

import multiprocessing
import sys
import time


def echo(there, back):
    while (item := there.get()) is not None:
        back.put(item)


def produce(queue, orders):
    while (count := orders.get()) is not None:
        for number in range(count):
            queue.put(number)


def consume(queue, reports):
    count = total = 0
    while (item := queue.get()) is not None:
        if item < 0:
            reports.put((count, total))
            count = total = 0
        else:
            count += 1
            total += item


def round_trip(context):
    there, back = context.Queue(), context.Queue()
    context.Process(target=echo, args=(there, back), daemon=True).start()

    def batch(count):
        for number in range(count):
            there.put(number)
            assert back.get() == number

    return batch


def shared(context, each):
    queue, orders, reports = context.Queue(), context.Queue(), context.Queue()
    for _ in range(each):
        context.Process(target=produce, args=(queue, orders), daemon=True).start()
        context.Process(target=consume, args=(queue, reports), daemon=True).start()

    def batch(count):
        share = -(-count // each)
        for _ in range(each):
            orders.put(share)
        came = total = 0
        while came < share * each:
            # A mark may overtake what producers still send: ask until all has come.
            queue.put(-1)
            report = reports.get()
            came += report[0]
            total += report[1]
        assert came == share * each and total == each * share * (share - 1) // 2

    return batch


def main(what, budget):
    context = multiprocessing.get_context("fork")
    batch = round_trip(context) if what == "round-trip" else shared(context, int(what))
    count = 100
    while True:
        begun = time.perf_counter()
        batch(count)
        took = time.perf_counter() - begun
        if took >= budget / 20:
            break
        count *= 2
    samples = []
    begun = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - begun < budget:
        start = time.perf_counter()
        batch(count)
        samples.append((time.perf_counter() - start) / count)
    print(sorted(samples)[len(samples) // 2])


main(sys.argv[1], float(sys.argv[2]))
