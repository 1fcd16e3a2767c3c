"""A child changes a shared value and a shared array, and the parent sees it."""

import sys

import bunshin as mp


def f(n, a):
    n.value = 3.141592
    for i in range(len(a)):
        a[i] = -a[i]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        mp.set_start_method(sys.argv[1])
    num = mp.Value("d", 0.0)
    arr = mp.Array("i", range(10))

    p = mp.Process(target=f, args=(num, arr))
    p.start()
    p.join()

    print(num.value)
    print(arr[:])
