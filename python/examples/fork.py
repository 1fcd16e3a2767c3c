"""A fork copies the process: what either side does to its memory afterwards is its own."""

import os

import bunshin as mp

pid_list = []


def main():
    pid_list.append(os.getpid())
    # Only for the order of the lines below: the child waits for this.
    until_printed, printed = mp.Pipe(duplex=False)
    child_pid = os.fork()

    if child_pid == 0:
        until_printed.recv()
        pid_list.append(os.getpid())
        print()
        print("child: hello, I am the child process")
        print("child: the PIDs I know are %s" % pid_list)
    else:
        pid_list.append(os.getpid())
        print()
        print("parent: hello, I am the parent process")
        print("parent: the child's PID is %d" % child_pid)
        print("parent: the PIDs I know are %s" % pid_list, flush=True)
        printed.send(True)
        os.waitpid(child_pid, 0)


if __name__ == "__main__":
    main()
