"""A receiver of webhooks that fails three times in ten, and writes down what it got and how it answered."""

import asyncio
import hashlib
import os
import random
import socket
import struct
from pathlib import Path

from standardwebhooks import Webhook, WebhookVerificationError

from tests.faults.ledger import Journal

FAILING = 0.3
FLAKY, DEAD = tuple(f"/flaky/{number}" for number in range(8)), "/dead"
"""The endpoints: some that fail now and then, one that always does."""
ANSWERS = {
    "taken": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "500": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Later\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Elsewhere\r\nLocation: http://169.254.169.254/latest/meta-data/\r\n"
    b"Content-Length: 0\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
    "reset": b"",
    "hang": b"",
}
_NO_LINGER = struct.pack("ii", 1, 0)


def main() -> int:
    """Serve on the listening socket's port in `FAULTS_PORT`; secrets by path are in the file `FAULTS_SECRETS`."""
    asyncio.run(_serve(int(os.environ["FAULTS_PORT"])))
    return 0


async def _serve(port: int) -> None:
    receiver = Receiver(Journal(Path(os.environ["FAULTS_LEDGERS"]) / "webhooks.jsonl"))
    server = await asyncio.start_server(receiver.accept, "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


class Receiver:
    """Answers requests; each connection may carry many."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._signers: dict[str, Webhook] = {}

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if v}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                answer = self._judge(request.split(" ")[1].partition("?")[0], headers, body)
                if answer == "hang":
                    await asyncio.sleep(60)
                if answer == "reset":
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
                    return
                writer.write(ANSWERS[answer])
                await writer.drain()
                if answer == "cut":
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass  # the sender has had enough
        finally:
            writer.transport.abort() if writer.is_closing() else writer.close()

    def _judge(self, path: str, headers: dict[str, str], body: bytes) -> str:
        try:
            self._signer(path).verify(body.decode(), headers)
            verified = True
        except (WebhookVerificationError, ValueError):
            verified = False
        answer = "taken"
        if path == DEAD:
            answer = "500"
        elif random.random() < FAILING:
            answer = random.choice([name for name in ANSWERS if name != "taken"])
        # Written before the answer leaves: the ledger may know more than the sender, never less.
        self._journal.write(
            id=headers.get("webhook-id", ""),
            path=path,
            answer=answer,
            verified=verified,
            digest=hashlib.sha256(body).hexdigest(),
        )
        return answer

    def _signer(self, path: str) -> Webhook:
        if path not in self._signers:
            secrets = dict(line.split(" ") for line in Path(os.environ["FAULTS_SECRETS"]).read_text().splitlines())
            self._signers[path] = Webhook(secrets[path])
        return self._signers[path]
