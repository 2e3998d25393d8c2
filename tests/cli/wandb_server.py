"""A W&B server that knows as much as its client asks for, and then stops answering."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Outage = Literal["hangs", "errors", "closes"]


class Server(ThreadingHTTPServer):
    """Serves until the run exists, or not at all.

    Attributes:
        outage: what happens afterwards: no answer, answers with 500, or closed connections.
        is_out: whether it has begun.
        run: name of the run that the client has made.
    """

    daemon_threads = True

    def __init__(self, outage: Outage, from_the_start: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.outage, self.is_out = outage, from_the_start
        self.run: str | None = None
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client closes connections when it ends."""

    def answer(self, query: dict[str, Any]) -> dict[str, Any]:
        """Answer to GraphQL, with all that any of the client's queries reads."""
        asked = query.get("variables") or {}
        (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", query["query"])[:1] or [""]
        name = asked.get("name") or self.run
        project = {"id": "p", "name": asked.get("project"), "entity": {"id": "e", "name": "me"}}
        nothing = dict.fromkeys(("description", "config", "sweepName"))
        bucket = {"id": "b", "name": name, "displayName": name, "historyLineCount": 0, "project": project, **nothing}
        if operation == "UpsertBucket":
            self.run, self.is_out = name, True
        return {
            "viewer": {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}},
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "model": {"bucket": None},
        }


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.is_out and self.server.outage == "hangs":
            self.server.over.wait()
        elif self.server.is_out and self.server.outage == "closes":
            self.close_connection = True
        elif self.server.is_out:
            self._send(500, {})
        else:
            self._send(200, {"data": self.server.answer(json.loads(body))} if self.path == "/graphql" else {})

    do_GET = do_PUT = do_POST

    def _send(self, code: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        with suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def serving(outage: Outage, from_the_start: bool) -> Iterator[Server]:
    """A server in a thread of its own."""
    server = Server(outage, from_the_start)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
