"""The two ends of many short connections: `listen PORT`, and `connect PORT ADDRESS SECONDS`, which prints a rate."""

import sys
import time
from socket import SO_LINGER, SO_REUSEADDR, SOL_SOCKET, socket

NOT_LINGER = b"\1\0\0\0\0\0\0\0"  # close at once, by reset: ports do not run out


def listen(port: int) -> None:
    server = socket()
    server.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", port))
    server.listen(1024)
    while True:
        client, _ = server.accept()
        client.close()


def connect(port: int, address: str, seconds: float) -> float:
    count = 0
    began = now = time.perf_counter()
    while now < began + seconds:
        for _ in range(20):
            client = socket()
            client.setsockopt(SOL_SOCKET, SO_LINGER, NOT_LINGER)
            client.connect((address, port))
            client.close()
        count += 20
        now = time.perf_counter()
    return count / (now - began)


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(int(sys.argv[2]))
    else:
        sys.stdout.write(f"{connect(int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))}\n")
