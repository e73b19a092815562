"""What imaplib can do, once; and imapclient, which is built on it.

Usage: imaplib_run.py imaplib|imapclient FOLDER PORT USER PREFIX

Prints what the client returned, and lines that begin with `note:` on what the server cannot do. Each
connection's bytes go to FOLDER/<number>.client and FOLDER/<number>.server. FOLDER holds ca.pem and
big.eml. The password comes in the environment.
"""

import imaplib
import itertools
import os
import ssl
import sys
import time

LIBRARY, FOLDER, PORT, USER, PREFIX = sys.argv[1:]
PASSWORD = os.environ["PASSWORD"]
CONTEXT = ssl.create_default_context(cafile=f"{FOLDER}/ca.pem")
TIMEOUT = 240
COPY = PREFIX + "Copy"
with open(f"{FOLDER}/big.eml", "rb") as file:
    BIG = file.read()
# Of a server that sees new mail only when a second has passed since it last looked.
BY_THE_CLOCK = "BY_THE_CLOCK" in os.environ
NEWS = b"Message-ID: <5@matrix.example.org>\r\nSubject: news\r\n\r\nNews.\r\n"

imaplib._MAXLINE = 10_000_000
numbers = itertools.count(1)


def recorded(base):
    """The class, whose connections write down what passes."""

    class Recorded(base):
        def open(self, *args, **kwargs):
            number = next(numbers)
            self.heard = open(f"{FOLDER}/{number}.server", "wb", buffering=0)
            self.said = open(f"{FOLDER}/{number}.client", "wb", buffering=0)
            super().open(*args, **kwargs)

        def read(self, size):
            data = super().read(size)
            self.heard.write(data)
            return data

        def readline(self):
            data = super().readline()
            self.heard.write(data)
            return data

        def send(self, data):
            self.said.write(data)
            return super().send(data)

    return Recorded


def show(what, result):
    print(f"{what}: {result!r}")


def next_second():
    if BY_THE_CLOCK:
        time.sleep(1.1)


def with_imaplib():
    Client = recorded(imaplib.IMAP4_SSL)

    def connect():
        client = Client("localhost", int(PORT), ssl_context=CONTEXT, timeout=TIMEOUT)
        client.login(USER, PASSWORD)
        return client

    client = connect()
    typ, capabilities = client.capability()
    can = capabilities[0].decode().upper().split()
    show("list", client.list())
    show("select", client.select("INBOX"))
    show("fetch", client.fetch("1:3", "(FLAGS RFC822.SIZE ENVELOPE BODYSTRUCTURE)"))
    show("bodies", client.fetch("1:3", "(BODY.PEEK[])"))
    show("part", client.uid("FETCH", "2", "(BODY.PEEK[1]<0.4>)"))
    next_second()
    show("append", client.append("INBOX", r"(\Flagged)", None, BIG)[0])
    show("noop", client.noop()[0])
    show("size", client.fetch("4", "(RFC822.SIZE FLAGS)"))
    typ, big = client.fetch("4", "(BODY.PEEK[])")
    show("the same as appended", big[0][1] == BIG)
    show("search", client.search(None, "SUBJECT", "needle"))
    show("uid search", client.uid("SEARCH", "UNSEEN", "LARGER", "1000000"))
    show("store", client.store("1,2", "+FLAGS", r"(\Seen \Answered)"))
    show("create", client.create(COPY)[0])
    show("subscribe", client.subscribe(COPY)[0])
    show("lsub", client.lsub())
    show("copy", client.copy("1", COPY)[0])
    if "MOVE" in can:
        show("move", client.uid("MOVE", "2", COPY)[0])
    else:
        print("note: no MOVE: COPY + EXPUNGE")
        show("copy for move", client.uid("COPY", "2", COPY)[0])
        show("store for move", client.uid("STORE", "2", "+FLAGS.SILENT", r"(\Deleted)")[0])
        show("expunge", client.expunge())
    if "UIDPLUS" not in can:
        print("note: no UIDPLUS")
    show("status", client.status(COPY, "(MESSAGES UNSEEN)"))
    show("namespace" if "NAMESPACE" in can else "no namespace", client.namespace())
    try:
        show("no such mailbox", client.select(PREFIX + "Nope"))
        show("unknown", client.xatom("XUNKNOWN"))
    except imaplib.IMAP4.error as error:
        show("refused", str(error))
    print("note: no IDLE in this imaplib")
    show("logout", client.logout()[0])


def with_imapclient():
    sys.path.insert(0, os.environ["LIBRARY_FOLDER"])
    import imapclient
    import imapclient.tls

    imapclient.tls.IMAP4_TLS = recorded(imapclient.tls.IMAP4_TLS)

    def connect():
        client = imapclient.IMAPClient(
            "localhost", int(PORT), ssl_context=CONTEXT, timeout=TIMEOUT
        )
        client.login(USER, PASSWORD)
        return client

    def ordered(found):
        return {number: sorted(items.items()) for number, items in sorted(found.items())}

    client = connect()
    if client.has_capability("ID"):
        show("id", bool(client.id_({"name": "matrix"})))
    else:
        print("note: no ID")
    show("list", client.list_folders())
    show("select", sorted(client.select_folder("INBOX").items()))
    show("fetch", ordered(client.fetch([1, 2, 3], ["FLAGS", "RFC822.SIZE", "ENVELOPE"])))
    show("bodies", ordered(client.fetch([1, 2, 3], ["BODY.PEEK[]", "BODYSTRUCTURE"])))
    next_second()
    show("append", client.append("INBOX", BIG, flags=[imapclient.FLAGGED]))
    show("noop", client.noop()[0])
    big = client.fetch([4], ["BODY.PEEK[]", "FLAGS"])[4]
    show("the same as appended", big[b"BODY[]"] == BIG)
    show("search", client.search(["SUBJECT", "needle"]))
    show("search utf-8", client.search(["TEXT", "Grüße"], "UTF-8"))
    show("store", client.add_flags([1, 2], [imapclient.SEEN, imapclient.ANSWERED]))
    show("create", client.create_folder(COPY))
    show("copy", client.copy([1], COPY))
    if client.has_capability("MOVE"):
        show("move", client.move([2], COPY))
    else:
        print("note: no MOVE: COPY + EXPUNGE")
        show("copy for move", client.copy([2], COPY))
        show("store for move", client.delete_messages([2], silent=True))
        show("expunge", client.expunge())
    show("status", sorted(client.folder_status(COPY, ["MESSAGES", "UNSEEN"]).items()))
    if client.has_capability("IDLE"):
        other = connect()
        client.idle()
        # Cyrus says nothing of what comes while it begins.
        time.sleep(2)
        other.append("INBOX", NEWS)
        told = []
        # Some servers tell of it in several goes, some never.
        while not any(len(it) > 1 and it[1] == b"EXISTS" for it in told):
            news = client.idle_check(3 if BY_THE_CLOCK else 120)
            if not news:
                break
            told += news
        if told:
            show("told in idle", [it for it in told if it[1] == b"EXISTS"])
        else:
            print("note: IDLE is silent")
        client.idle_done()
        other.logout()
    else:
        print("note: no IDLE")
    client.unselect_folder() if client.has_capability("UNSELECT") else print("note: no UNSELECT")
    show("logout", client.logout())


{"imaplib": with_imaplib, "imapclient": with_imapclient}[LIBRARY]()
