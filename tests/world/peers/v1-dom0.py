#!/usr/bin/env python3
"""The original's daemon as its behaviour file describes it, for one qube: eleven calls for each command."""
import hashlib, hmac, subprocess, sys, time

vm, rounds = sys.argv[1], int(sys.argv[2])
D = "/home/user/.qvm-remote"
BASE = ["qvm-run", "--no-gui", "--no-autostart", "--pass-io", vm]


def read(cmd):
    return subprocess.run(BASE + [cmd], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout


def write(path, data):
    subprocess.run(BASE + ["cat > '%s'" % path], input=data)


def fire(cmd):
    subprocess.run(["qvm-run", "--no-gui", "--no-autostart", vm, cmd], stdin=subprocess.DEVNULL)


for _ in range(rounds):
    for id in read("ls -1 %s/queue/pending/ 2>/dev/null" % D).decode().split("\n"):
        if not id.strip() or id.endswith(".auth") or id.endswith(".cmd"):
            continue
        text = read("cat '%s/queue/pending/%s'" % (D, id))
        token = read("cat '%s/queue/pending/%s.auth' 2>/dev/null" % (D, id)).decode().strip()
        key = open("/etc/qubes/remote.d/%s.key" % vm).read().strip()
        good = hmac.new(key.encode(), id.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(token, good):
            fire("rm -f '%s/queue/pending/%s' '%s/queue/pending/%s.auth'" % (D, id, D, id))
            continue
        fire("rm -f '%s/queue/pending/%s.auth'" % (D, id))
        fire("mv '%s/queue/pending/%s' '%s/queue/running/%s'" % (D, id, D, id))
        done = subprocess.run(["bash", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        results = "%s/queue/results/%s" % (D, id)
        write(results + ".out", done.stdout)
        write(results + ".err", done.stderr)
        write(results + ".exit", str(done.returncode).encode())
        write(results + ".meta", b"id=%s\nstarted=x\nduration_ms=1\nexit_code=%d\n" % (id.encode(), done.returncode))
        fire("rm -f '%s/queue/running/%s'" % (D, id))
    time.sleep(0.2)
