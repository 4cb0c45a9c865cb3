"""A program that draws for a page as Textual's web driver does, in a moment: it says what it got.

`stubborn` ignores every request to end; `silent` fails before it draws, as the application does with a bad file.
"""

import json
import os
import signal
import sys


def send(kind: bytes, payload: bytes) -> None:
    sys.stdout.buffer.write(kind + len(payload).to_bytes(4, "big") + payload)
    sys.stdout.buffer.flush()


def main() -> None:
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    if how == "silent":
        sys.exit("error: There is no file m.gguf; give the path of a GGUF file.")
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.buffer.write(b"a line of a library\n__GANGLION__\n")
    told = {
        "pid": os.getpid(),
        "size": [os.environ["COLUMNS"], os.environ["ROWS"]],
        "commands": os.environ.get("NANOCHAT_WEB_COMMANDS"),
        "token": os.environ.get("NANOCHAT_WEB_TOKEN"),
    }
    send(b"D", json.dumps(told).encode())
    read = sys.stdin.buffer.read
    while head := read(5):
        payload = read(int.from_bytes(head[1:], "big"))
        message = json.loads(payload) if head[:1] == b"M" else {}
        if message.get("type") == "quit" and how != "stubborn":
            return
        if message.get("type") == "deliver_chunk_request":
            send_piece(message["key"])
            continue
        if payload == b"exit":
            send(b"M", b'{"type": "exit"}')
            return
        if payload.startswith(b"open "):
            send(b"M", json.dumps({"type": "open_url", "url": payload[5:].decode(), "new_tab": False}).encode())
            continue
        if payload == b"file":
            send(b"M", json.dumps({"type": "deliver_file_start", "key": "k", "path": '/a/ü ".svg'}).encode())
            continue
        send(b"D", b"got " + head[:1] + payload)
    if how == "stubborn":
        signal.pause()


PIECES = [b"<svg onload=alert(1)>", b""]


def send_piece(key: str) -> None:
    from textual._binary_encode import dump

    send(b"P", dump(("deliver_chunk", key, PIECES.pop(0))))


main()
