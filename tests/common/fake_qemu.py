"""Stands in for QEMU: takes its argv, speaks QMP, binds forwarded ports, plays a guest that fake.json describes.

fake.json lies in the VM's folder or the one above: `fail` (last words at start), `ignore_sigterm`, `end_on`
(a QMP command), `qmp` and `guest` (hang | garbage), `guest` (method -> result), `say` (lines to the host), `http`
(seconds after which web servers answer on all TCP ports with the VM's id).
"""

import json
import os
import re
import signal
import socket
import sys
import threading
import time


def main(argv):
    if "stdio" in argv:  # asked what it can do, without a machine
        return capabilities()
    text = "\n".join(argv).replace(",,", "\0")
    found = re.findall(
        r"id=(com0|host0|guest0),(?:path|logfile)=([^,\n]+)|\n(unix):([^,\n]+)", text
    )
    path = {a or c: (b or d).replace("\0", ",") for a, b, c, d in found}
    folder = os.path.dirname(path["unix"])
    fake = behaviour(folder) or behaviour(os.path.dirname(folder)) or {}
    if "fail" in fake:
        sys.exit(fake["fail"])
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "ignore_sigterm" in fake else leave)
    held = [bind(*rule) for rule in re.findall(r"=(tcp|udp):(\[.*?\]|[^:,]*):(\d+)-", text)]
    with open(path["com0"], "a") as serial:
        serial.write(f"hello from {len(held)} ports\n")
    for sock in held if "http" in fake else ():
        if sock.type == socket.SOCK_STREAM:
            ready = time.monotonic() + fake["http"]
            threading.Thread(target=web, args=(sock, os.path.basename(folder), ready)).start()
    for name, speak in ("host0", host), ("guest0", guest), ("unix", monitor):
        if name in path:  # a guest with vsock has no ports
            threading.Thread(target=serve, args=(path[name], speak, fake)).start()
    while held is not None:  # signals are handled in the main thread alone
        signal.pause()


def capabilities():
    sev = {"pdh": "", "cert-chain": "", "cpu0-id": "", "cbitpos": 51, "reduced-phys-bits": 1}
    for message in {"QMP": {"capabilities": []}}, {"return": {}}, {"return": sev, "id": "sev"}:
        print(json.dumps(message))


def behaviour(folder):
    if os.path.exists(os.path.join(folder, "fake.json")):
        with open(os.path.join(folder, "fake.json")) as rules:
            return json.load(rules)


def leave(*_):
    os._exit(0)


def bind(protocol, address, port):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((address.strip("[]"), int(port)))
    return bound


def forward(command, fake):
    """hostfwd_add, hostfwd_remove and info usernet, in the words of QEMU 7.2."""
    verb, *words = command.split()
    rule = words[-1]
    if verb == "info":
        shown = [
            f"  TCP[HOST_FORWARD]  9 {a:>15} {h:>5}       10.0.2.15 {g:>5}     0     0"
            for a, h, g, _ in FORWARDS
        ]
        return "\r\n".join(["Hub -1 (net0):", *shown, ""])
    protocol, address, host_port = rule.removesuffix("-").split("-")[0].split(":")
    if verb == "hostfwd_remove":
        for each in [each for each in FORWARDS if each[:2] == (address, host_port)]:
            each[3].close()
            FORWARDS.remove(each)
            return f"host forwarding rule for {rule} removed\r\n"
        return f"host forwarding rule for {rule} not found\r\n"
    if "no_forwards" in fake:
        return f"could not set up host forwarding rule '{rule}'\r\n"
    bound = bind(protocol, address, host_port)
    bound.listen()
    FORWARDS.append((address, host_port, rule.rpartition(":")[2], bound))
    return ""


FORWARDS = []


def web(listener, name, ready):
    listener.listen(256)
    while True:
        client = listener.accept()[0]
        if time.monotonic() < ready:  # as QEMU's own network does while the guest does not listen
            client.close()
        else:
            threading.Thread(target=page, args=(client, name)).start()


def page(client, name):
    try:
        with client, client.makefile("rb") as asked:
            while line := asked.readline():
                if line == b"\r\n":
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n"
                    client.sendall((head + name).encode())
    except OSError:
        pass  # the client left


def serve(path, speak, fake):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    while True:  # one client at a time, as QEMU does it
        try:
            with listener.accept()[0] as client, client.makefile("rw", errors="replace") as stream:
                speak(stream, fake)
        except OSError:
            pass  # the client left


def send(stream, message):
    stream.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
    stream.flush()


def calls(stream):
    text = ""
    while data := stream.buffer.read1(65536):  # a QMP client ends no line
        text = (text + data.decode()).lstrip()
        while text:
            try:
                call, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield call


def monitor(stream, fake):
    if "qmp" in fake:
        send(stream, "\0{]" if fake["qmp"] == "garbage" else "")
        time.sleep(3600)
    send(stream, {"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}})
    for call in calls(stream):
        known = call["execute"] in ("qmp_capabilities", "query-status", "system_powerdown", "quit")
        answer = {"return": {}} if known else {"error": {"class": "CommandNotFound", "desc": "no"}}
        if call["execute"] == "human-monitor-command":
            answer = {"return": forward(call["arguments"]["command-line"], fake)}
        if call["execute"] == "query-chardev":
            answer = {"return": [{"label": "com0", "filename": "pty:/dev/pts/4096"}]}
        send(stream, {**answer, "id": call.get("id")})
        if call["execute"] in (*fake.get("end_on", ["system_powerdown"]), "quit"):
            leave()


def guest(stream, fake):
    answers = fake.get("guest", {})
    for call in calls(stream):
        send(stream, "]]]\n" if answers == "garbage" else {"id": 1, "result": "of another call"})
        if isinstance(answers, dict):
            send(stream, {"id": call["id"], **answers.get(call["method"], {"result": {}})})
            call["method"] == "Shutdown" and leave()


def host(stream, fake):
    for line in fake.get("say", []):
        send(stream, line)
    for line in stream:
        pass


if __name__ == "__main__":
    print("QEMU emulator version 7.2.22") if "--version" in sys.argv else main(sys.argv[1:])
