#!/usr/bin/env python3
"""An agent that means harm and has the key of its qube: ~/evil says what it does with it.

deaf N TEXT     N requests for the shell text TEXT; then it reads nothing any more
late TEXT       one request whose text comes when ~/go is there
flood TEXT      requests for TEXT without end, answers read
cancels TEXT    the same, each cancelled at once
signals TEXT    one request for TEXT; then signals and sizes of a terminal for it without end
"""
import hashlib, hmac, os, struct, sys, time

mode, *rest = open("/home/user/evil").read().split(" ", 2)
key = bytes.fromhex(open("/home/user/.qvm-remote/auth.key").read().strip())
out, inp = sys.stdout.buffer, sys.stdin.buffer
done = open("/home/user/answers", "a")


def send(stream, kind, body=b""):
    out.write(struct.pack(">IIB", 5 + len(body), stream, kind) + body)
    out.flush()


def frame():
    head = inp.read(9)
    if len(head) < 9:
        sys.exit()
    length, stream, kind = struct.unpack(">IIB", head)
    return stream, kind, inp.read(length - 5)


def field(data):
    return struct.pack(">H", len(data)) + data


out.write(b"QVMR2\n")
out.flush()
_, _, hello = frame()
nonce, (streams, seq), vm = hello[2:34], struct.unpack(">HQ", hello[34:44]), hello[44:]
kid = hashlib.sha256(b"qvm-remote/2 kid" + key).digest()[:8]
request_key = hmac.new(key, b"qvm-remote/2 request", "sha256").digest()


def request(stream, text):
    global seq
    body = (
        b"QVMR2" + kid + field(vm) + nonce + struct.pack(">Q", seq) + field(b"hostile-%d" % seq)
        + struct.pack(">QIB", int(time.time() * 1000), 0, 0) + field(b"") + field(b"/") + b"\0"
        + struct.pack(">I", len(text)) + hashlib.sha256(text).digest() + struct.pack(">H", 0)
    )
    seq += 1
    send(stream, 2, hmac.new(request_key, body, "sha256").digest() + body)


if mode == "deaf":
    for n in range(1, int(rest[0]) + 1):
        request(n, rest[1].encode())
        send(n, 3, rest[1].encode())
    open("/home/user/asked", "w").close()
    while True:
        time.sleep(5)
        send(0, 16, struct.pack(">Q", 1))  # it is not silent
elif mode == "late":
    text = " ".join(rest).encode()
    request(1, text)
    open("/home/user/asked", "w").close()
    while not os.path.exists("/home/user/go"):
        time.sleep(0.01)
    send(1, 3, text)
    while True:
        stream, kind, body = frame()
        print(stream, kind, body[1:] if kind == 5 else b"", file=done, flush=True)
elif mode == "signals":
    text = " ".join(rest).encode()
    request(1, text)
    send(1, 3, text)
    open("/home/user/asked", "w").close()
    while True:
        out.write((struct.pack(">IIBB", 6, 1, 12, 28) + struct.pack(">IIBHH", 9, 1, 13, 24, 80)) * 500)
        out.flush()
elif mode in ("flood", "cancels"):
    text = " ".join(rest).encode()
    n, open_streams = 0, 0
    while True:
        while open_streams < 32:
            n += 1
            request(n, text)
            send(n, 3, text)
            if mode == "cancels":
                send(n, 14)
            open_streams += 1
        stream, kind, body = frame()
        if kind in (5, 15):
            open_streams -= 1
            print(stream, kind, file=done, flush=True)
        elif kind in (8, 9):
            send(stream, 11, struct.pack(">I", len(body)))
