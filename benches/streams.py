#!/usr/bin/env python3
"""Measures what an idle stream of GET /v1/changes costs over TLS, beside an idle IMAP session.

  benches/streams.py [--program FILE] [--streams N] [--accounts N]

Plays the IMAP server itself, starts the program with a new database, opens N sessions in IDLE and then N
streams by Server-Sent Events and N by WebSocket, each in a process of its own, and prints how much the
program's memory (PSS) grew for each of them, and for streams whether it is as little as wanted. Streams of one account share a connection to the backend:
with as many accounts as streams, that connection is in the figure. Where the accounts are watched for a
device, their streams have none. Needs nothing but Python.
"""

import argparse
import asyncio
import base64
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import tempfile
import time

CONFIG = """
[[listener]]
address = "127.0.0.1:{imap}"
[tls]
certificate = "{folder}/server.pem"
private_key = "{folder}/server.key"
[backend]
address = "127.0.0.1:{backend}"
tls = "none"
[store]
url = "sqlite://{folder}/mailchime.db"
[credentials]
key_file = "{folder}/mailchime.key"
[api]
address = "127.0.0.1:{api}"
connections = 100000
streams = 100000
streams_per_account = 10000
[limits]
sessions = 100000
sessions_per_ip = 100000
dials_per_minute = 1000000
dials_at_once = 1000
[apns]
endpoint = "https://127.0.0.1:{apns}"
ca = "{folder}/ca.pem"
certificate = "{folder}/apns.pem"
private_key = "{folder}/apns.key"
[watch]
logins_per_second = 10000
[log]
level = "warn"
"""

STATUS = "(MESSAGES 3 UIDNEXT 4 UIDVALIDITY 7 UNSEEN 1)"


async def imap_server(reader, writer):
    """Takes every login. A mailbox never changes."""
    say = lambda line: writer.write(line.encode() + b"\r\n")
    say("* OK [CAPABILITY IMAP4rev1 IDLE SASL-IR AUTH=PLAIN] there")
    try:
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            tag, verb, *rest = line.split(" ")
            match verb.upper():
                case "CAPABILITY":
                    say("* CAPABILITY IMAP4rev1 IDLE SASL-IR AUTH=PLAIN")
                case "AUTHENTICATE" if len(rest) == 1:
                    say("+ ")
                    await reader.readline()
                case "STATUS":
                    say(f"* STATUS INBOX {STATUS}")
                case "EXAMINE" | "SELECT":
                    say("* 3 EXISTS")
                    say("* OK [UIDVALIDITY 7] valid")
                case "IDLE":
                    say("+ idling")
                    await reader.readline()
                case "LOGOUT":
                    say("* BYE then")
            say(f"{tag} OK done")
            if verb.upper() == "LOGOUT":
                break
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    writer.close()


def trust(folder):
    return ssl.create_default_context(cafile=str(folder / "ca.pem"))


async def register(port, tls, user):
    """A phone registers, and leaves."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    await reader.readline()
    writer.write(
        f"a LOGIN {user} secret\r\n"
        'b XAPPLEPUSHSERVICE "aps-version" "2" "aps-account-id" "0715A26B-CA09-4730-A419-793000CA982E" '
        f'"aps-device-token" "{user.encode().hex():0<64}" "aps-subtopic" "com.apple.mobilemail" '
        '"mailboxes" ("INBOX")\r\nc LOGOUT\r\n'.encode()
    )
    assert b"\r\nb OK" in (answer := await reader.read(-1)), answer
    writer.close()


async def session(port, tls, user):
    """An IMAP session in IDLE."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    await reader.readline()
    writer.write(f"a LOGIN {user} secret\r\n".encode())
    while not (await reader.readline()).startswith(b"a OK"):
        pass
    writer.write(b"b SELECT INBOX\r\n")
    while not (await reader.readline()).startswith(b"b OK"):
        pass
    writer.write(b"c IDLE\r\n")
    while not (await reader.readline()).startswith(b"+"):
        pass
    return writer


async def stream(port, tls, user, upgrade=""):
    """A stream by Server-Sent Events, behind its first event."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=tls)
    who = base64.b64encode(f"{user}:secret".encode()).decode()
    head = f"GET /v1/changes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic {who}\r\n{upgrade}\r\n"
    writer.write(head.encode())
    status = await reader.readline()
    assert b" 200 " in status or b" 101 " in status, status
    await reader.readuntil(b"stream.opened")
    return writer


async def socket_stream(port, tls, user):
    key = base64.b64encode(b"0123456789abcdef").decode()
    upgrade = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n"
    )
    return await stream(port, tls, user, upgrade)


def pss(pid):
    """In KiB, with what is swapped out."""
    lines = (line.split() for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line[1]) for line in lines if line[0] in ("Pss:", "SwapPss:"))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


async def by_fifties(opens, port, tls, streams, accounts, name="user"):
    opened = []
    for first in range(0, streams, 50):
        users = (f"{name}{at % accounts}" for at in range(first, min(first + 50, streams)))
        opened += await asyncio.gather(*(opens(port, tls, user) for user in users))
    return opened


async def figure(program, name, opens, streams, accounts, watched=False):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        subprocess.run([program, "certs", "dev", "--out", folder], check=True, stdout=subprocess.DEVNULL)
        imap, api, apns = free_ports(3)
        backend = await asyncio.start_server(imap_server, "127.0.0.1", 0, backlog=1024)
        config = folder / "proxy.toml"
        backend_port = backend.sockets[0].getsockname()[1]
        config.write_text(CONFIG.format(folder=folder, imap=imap, api=api, apns=apns, backend=backend_port))
        process = subprocess.Popen([program, "serve", "--config", config])
        try:
            port, tls = {"session": imap}.get(opens.__name__, api), trust(folder)
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            # What is needed once, also by fifty that come at the same time.
            held = await by_fifties(opens, port, tls, 50, 50, "warm")
            if watched:
                await by_fifties(register, imap, tls, accounts, accounts)
            await asyncio.sleep(5 if watched else 2)
            before, began = pss(process.pid), time.monotonic()
            held += await by_fifties(opens, port, tls, streams, accounts)
            took = time.monotonic() - began
            await asyncio.sleep(8 if watched else 5)
            each = (pss(process.pid) - before) / streams
            print(f"{name:52} {each:6.1f} KiB each   ({streams} of {accounts} accounts, {took:.0f} s)", flush=True)
            for writer in held:
                writer.transport.abort()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            backend.close()
    return each


async def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--program", default="target/release/mailchime")
    options.add_argument("--streams", type=int, default=4000)
    options.add_argument("--accounts", type=int, default=100)
    options = options.parse_args()
    program, streams, accounts = os.path.abspath(options.program), options.streams, options.accounts
    for name, opens, accounts, watched in [
        ("an idle IMAP session", session, accounts, False),
        ("an idle stream by Server-Sent Events", stream, accounts, False),
        ("an idle stream by WebSocket", socket_stream, accounts, False),
        ("each of an account of its own: by Server-Sent Events", stream, streams, False),
        ("the same of accounts that are watched", stream, streams, True),
        ("the same by WebSocket", socket_stream, streams, True),
    ]:
        each = await figure(program, name, opens, streams, accounts, watched)
        if opens is not session:
            verdict = "reached" if each <= 12 else "missed"
            print(f"{'':52} at most 12 KiB: {verdict}")


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(main())
