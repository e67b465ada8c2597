"""Two proxies that pass everything on until a fault is armed: one before S3 that understands requests, one before
PostgreSQL that understands messages of the client. What is armed strikes once, or as often as told, and is counted when
it did.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

# Nothing here waits longer.
PATIENCE = 30.0

Headers = list[tuple[str, str]]


@dataclass
class Request:
    method: str
    path: str
    headers: Headers
    body: bytes


@dataclass
class Response:
    status: int
    headers: Headers
    body: bytes

    @classmethod
    def error(cls, status: int, code: str) -> Response:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        return cls(status, [("Content-Type", "application/xml")], body)


# What becomes of a request: an answer, the first bytes of one, or none at all (the connection is closed).
Pass = Callable[[Request], Response]
Strike = Callable[[Request, Pass], Response | bytes | None]


@dataclass
class Armed:
    """A fault that waits for its requests."""

    method: str
    strike: Strike
    times: int = 1
    skip: int = 0
    hits: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def takes(self, request: Request) -> bool:
        with self.lock:
            if request.method != self.method or not self.times or not request.path.split("?")[0].endswith(".parquet"):
                return False
            if self.skip:
                self.skip -= 1
                return False
            self.times -= 1
            self.hits += 1
            return True


class S3Proxy:
    """Speaks plain HTTP on both sides. The signature covers the Host header, which stays as the client sent it."""

    def __init__(self, upstream: str) -> None:
        self.armed: Armed | None = None
        proxy, address = self, urlsplit(upstream).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = PATIENCE

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, list(self.headers.items()), body)
                armed = proxy.armed
                strikes = armed is not None and armed.takes(request)
                answer = armed.strike(request, passing) if strikes and armed else passing(request)
                if isinstance(answer, Response):
                    self.wfile.write(_head(answer) + (b"" if self.command == "HEAD" else answer.body))
                    return
                if answer:
                    self.wfile.write(answer)
                self.close_connection = True

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self.rewrite: Callable[[str, Request], Response] = forward

        def passing(request: Request) -> Response:
            return proxy.rewrite(address, request)

        self.address = address
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def forward(address: str, request: Request) -> Response:
    """Sends a request to the server itself."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.endheaders(request.body)
        answer = connection.getresponse()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        if request.method == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length") or "0"))
        return Response(answer.status, headers, answer.read())
    finally:
        connection.close()


def send_half(address: str, request: Request) -> None:
    """Sends the head of a request and half of its body, and hangs up."""
    with socket.create_connection(address.rsplit(":", 1), timeout=PATIENCE) as connection:  # type: ignore[arg-type]
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
        connection.sendall(f"{request.method} {request.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        connection.sendall(request.body[: len(request.body) // 2])


_HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


def _head(answer: Response) -> bytes:
    headers = list(answer.headers)
    if not any(name.lower() == "content-length" for name, _ in headers) and answer.status not in (204, 304):
        headers.append(("Content-Length", str(len(answer.body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, '')}\r\n{lines}\r\n".encode("latin-1")


def half(answer: Response) -> bytes:
    """The head of an answer and half of its body."""
    return _head(answer) + answer.body[: len(answer.body) // 2]


# What a client begins a statement with: a query, or one to prepare, with what follows it.
_STATEMENTS = (b"Q", b"P")


class PostgresProxy:
    """Passes bytes on. After `cut_after` bytes from the server, or when the server has answered what the client sent as
    `lose_reply_to` (but for the first `skip` times), both sides are hung up; once, after which nothing is armed. For
    every statement in turn there is `strike`."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.cut_after: int | None = None
        self.lose_reply_to: bytes | None = None
        self.skip = 0
        self.nth: int | None = None
        self.how = "refused"
        self.stuck = threading.Event()
        """Whether somebody waits in vain."""
        self.hits = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def strike(self, nth: int, how: str) -> None:
        """The n-th statement from now on is not sent (`refused`), or sent and its answer `lost`, and both sides are
        hung up; or it `hangs` on its way, or is sent and the server `silent`, until the client hangs up."""
        self.hits, self.how, self.nth = 0, how, nth
        self.stuck.clear()

    def disarm(self) -> int:
        """How often it struck since it was armed."""
        self.cut_after = self.lose_reply_to = self.nth = None
        return self.hits

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            both = (client, server)
            losing = threading.Event()
            threading.Thread(target=self._up, args=(*both, losing), daemon=True).start()
            threading.Thread(target=self._down, args=(*both, losing), daemon=True).start()

    def _strikes(self) -> None:
        self.hits += 1
        if self.how in ("hangs", "silent"):
            self.stuck.set()

    def _up(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        """From the client."""
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self.nth is not None and data[:1] in _STATEMENTS:
                    self.nth -= 1
                    if self.nth == 0:
                        self.nth = None
                        if self.how in ("refused", "hangs"):
                            self._strikes()
                            while self.how == "hangs" and client.recv(65536):
                                pass
                            break
                        losing.set()
                wanted = self.lose_reply_to
                if wanted is not None and wanted in data and data[:1] == b"Q":
                    if self.skip:
                        self.skip -= 1
                    else:
                        self.lose_reply_to = None
                        losing.set()
                server.sendall(data)
        _hang_up(client, server)

    def _down(self, client: socket.socket, server: socket.socket, losing: threading.Event) -> None:
        """From the server."""
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if losing.is_set():
                    self._strikes()
                    while self.how == "silent" and server.recv(65536):
                        pass
                    break
                if self.cut_after is not None:
                    if len(data) >= self.cut_after:
                        client.sendall(data[: self.cut_after])
                        self.cut_after = None
                        self.hits += 1
                        break
                    self.cut_after -= len(data)
                client.sendall(data)
        _hang_up(client, server, reset=True)


def _hang_up(*sockets: socket.socket, reset: bool = False) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            if reset:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.003)
    return True
