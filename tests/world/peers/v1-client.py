#!/usr/bin/env python3
"""The original's client as its behaviour file describes it: files in the queue, a look every half second."""
import hashlib, hmac, os, secrets, sys, time

home = os.path.join(os.environ["HOME"], ".qvm-remote")
args, timeout = sys.argv[1:], 300
if args[:1] == ["-t"]:
    timeout, args = int(args[1]), args[2:]
if args and args[0].startswith("-"):
    print("qvm-remote: unknown option: %s" % args[0], file=sys.stderr)
    sys.exit(1)
text = (" ".join(args) + "\n").encode()
for d in ("pending", "running", "results"):
    os.makedirs(os.path.join(home, "queue", d), exist_ok=True)
id = time.strftime("%Y%m%d-%H%M%S") + "-%d-%s" % (os.getpid(), secrets.token_hex(4))
id = os.environ.get("V1_ID", id)
pending = os.path.join(home, "queue", "pending", id)


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


write(pending, text)
time.sleep(float(os.environ.get("V1_PAUSE", "0")))
try:
    key = open(os.path.join(home, "auth.key")).read().strip()
    token = os.environ.get("V1_TOKEN") or hmac.new(key.encode(), id.encode(), hashlib.sha256).hexdigest()
    write(pending + ".auth", token.encode())
except FileNotFoundError:
    pass
write(pending + ".cmd", text)
result = os.path.join(home, "queue", "results", id)
end = time.time() + timeout
while not os.path.exists(result + ".exit"):
    if time.time() > end:
        for path in (pending, pending + ".cmd", pending + ".auth", os.path.join(home, "queue", "running", id)):
            if os.path.exists(path):
                os.unlink(path)
        print("qvm-remote: timed out after %ds (id=%s)" % (timeout, id), file=sys.stderr)
        sys.exit(124)
    time.sleep(0.5)
sys.stdout.buffer.write(open(result + ".out", "rb").read())
sys.stdout.flush()
sys.stderr.buffer.write(open(result + ".err", "rb").read())
sys.exit(int(open(result + ".exit").read().strip() or "1") % 256)
