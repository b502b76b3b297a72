"""A DNS server for tests: A records of names, over UDP (RFC 1035)."""

import socket
import struct
import threading
from contextlib import contextmanager

A, IN, TTL_S = 1, 1, 1
FOUND, NO_NAME = 0x8180, 0x8183


def answer(query, records):
    """Return the answer to a query; without records of the name, that it does not exist."""
    number, count = struct.unpack_from("!H2xH", query)
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1 : end + 1 + query[end]].decode())
        end += 1 + query[end]
    end += 5  # the root's label, type and class
    kind = struct.unpack_from("!H", query, end - 4)[0]
    addresses = records.get(".".join(labels).lower(), [])
    found = addresses if kind == A else []
    head = struct.pack("!6H", number, FOUND if addresses else NO_NAME, count, len(found), 0, 0)
    rows = [
        struct.pack("!3HIH", 0xC00C, A, IN, TTL_S, 4) + socket.inet_aton(address)
        for address in found
    ]
    return head + query[12:end] + b"".join(rows)


@contextmanager
def serving_dns(records):
    """Serve on a free port of loopback; yield `host:port`. The records may change meanwhile."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve():
            while True:
                query, peer = server.recvfrom(4096)
                if query == b"stop":
                    return
                server.sendto(answer(query, records), peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"stop", server.getsockname())
            thread.join(10)
