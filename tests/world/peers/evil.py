#!/usr/bin/env python3
"""An agent that means harm: speaks the protocol as far as it has to, then does what ~/evil says."""
import hmac, os, struct, sys, time

mode = open("/home/user/evil").read().split()
out, inp = sys.stdout.buffer, sys.stdin.buffer


def send(stream, kind, body=b""):
    out.write(struct.pack(">IIB", 5 + len(body), stream, kind) + body)
    out.flush()


def v1(stream, id, token, text):
    send(stream, 19, struct.pack(">I", len(text)) + struct.pack(">H", len(id)) + id + token)
    if text:
        send(stream, 3, text)


if mode[0] == "babble":
    out.write(b"bash: \x1b]52;c;x\x07 what?\n" * 10)
    out.flush()
    time.sleep(60)
out.write(b"QVMR2\n")
out.flush()
head = inp.read(9)
(length,) = struct.unpack(">I", head[:4])
hello = inp.read(length - 5)
with open("/home/user/hello", "wb") as f:
    f.write(head + hello)
if mode[0] == "length":
    out.write(b"\xff\xff\xff\xff" + b"x" * 100)
elif mode[0] == "type":
    send(1, 99)
elif mode[0] == "server":
    send(1, 8, b"output of whom?")
elif mode[0] == "id":
    v1(1, b"../../../etc/cron.d/x", b"00", b"id\n")
elif mode[0] == "control":
    v1(1, b"a\x1b]52;c;x\x07", b"00", b"id\n")
elif mode[0] == "twice":
    v1(1, b"a", b"", b"x")
    v1(1, b"b", b"", b"x")
elif mode[0] == "streams":
    for n in range(1, 200):
        send(n, 19, struct.pack(">I", 1 << 20) + struct.pack(">H", 1) + b"a" + b"00")
elif mode[0] == "credit":
    # with a token that is good: a stream that has been refused may be sent anything
    key = open("/home/user/.qvm-remote/auth.key").read().strip().encode()
    send(1, 19, struct.pack(">I", 5) + struct.pack(">H", 1) + b"a" + hmac.new(key, b"a", "sha256").hexdigest().encode())
    send(1, 11, b"\xff\xff\xff\xff")
elif mode[0] == "flood":
    # well-formed frames without end: pings, and requests with wrong codes, answers left unread
    n = 0
    while True:
        n += 1
        out.write(struct.pack(">IIBQ", 13, 0, 16, 5) * 1000)
        v1(n, b"flood-%d" % n, b"00", b"true\n")
elif mode[0] == "garbage":
    while True:
        out.write(os.urandom(65536))
out.flush()
while inp.read(65536):
    pass
