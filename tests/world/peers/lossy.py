#!/usr/bin/env python3
"""Stands between the clients of a qube and its agent, and loses all input of commands and of `put`; its end arrives."""
import os, socket, struct, threading

path = "/home/user/.qvm-remote/run/sock"
os.rename(path, path + ".agent")
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(9)
print("up", flush=True)


def to_client(agent, client):
    while data := agent.recv(65536):
        client.sendall(data)
    client.shutdown(socket.SHUT_WR)


def to_agent(client, agent):
    stream = client.makefile("rb")
    while head := stream.read(9):
        length, _, kind = struct.unpack(">IIB", head)
        body = stream.read(length - 5)
        if kind != 7:  # STDIN
            agent.sendall(head + body)
    agent.shutdown(socket.SHUT_WR)


while True:
    client, _ = listener.accept()
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(path + ".agent")
    for way, ends in (to_client, (agent, client)), (to_agent, (client, agent)):
        threading.Thread(target=way, args=ends, daemon=True).start()
