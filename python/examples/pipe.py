"""Five messages through a pipe, sent before the child that receives them is started."""

import sys

import bunshin as mp


class CustomClass:
    pass


def work(connection):
    while True:
        instance = connection.recv()
        if not instance:
            return
        print("child: received: {}".format(instance))


def main():
    parent_conn, child_conn = mp.Pipe()

    child = mp.Process(target=work, args=(child_conn,))

    for item in (42, "some string", {"one": 1}, CustomClass(), None):
        print("parent: sending: {}".format(item), flush=True)
        parent_conn.send(item)

    child.start()
    child.join()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        mp.set_start_method(sys.argv[1])
    main()
