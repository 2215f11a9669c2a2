"""An HTTP server of weights, on this machine, that can misbehave."""

import hashlib
import http.server
import socket
from collections.abc import Callable

Respond = Callable[["Handler", bytes], None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        body = self.server.files.get(self.path.partition("?")[0])
        if body is None:
            self.send_error(404)
        else:
            self.server.respond(self, body)

    def start(self, length: int | str | None, **headers: str) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.respond: Respond = whole

    def add(self, body: bytes, name: str = "conformer-x_3rdparty_8xb128_in1k_20211206-{hash}.pth") -> str:
        """Serve `body` and return its URL; {hash} in the name becomes the start of its sha256."""
        path = "/v0/conformer/" + name.format(hash=hashlib.sha256(body).hexdigest()[:8])
        self.files[path] = body
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, *args: object) -> None:
        pass  # clients that give up are part of the tests


def whole(handler: Handler, body: bytes) -> None:
    handler.start(len(body))
    handler.wfile.write(body)


def cut_chunks(handler: Handler, body: bytes) -> None:
    handler.protocol_version = "HTTP/1.1"
    handler.start(None, Transfer_Encoding="chunked", Connection="close")
    handler.wfile.write(b"%x\r\n" % len(body) + body[:100] + b"\r\n")


def half(handler: Handler, body: bytes) -> None:
    handler.start(len(body))
    handler.wfile.write(body[: len(body) // 2])


def reset(handler: Handler, body: bytes) -> None:
    half(handler, body)
    handler.wfile.flush()
    linger = b"\1\0\0\0\0\0\0\0"  # close with a reset instead of an end
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def damaged(handler: Handler, body: bytes) -> None:
    handler.start(len(body))
    handler.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))


def unavailable(handler: Handler, body: bytes) -> None:
    handler.send_error(503)


def nonsense(handler: Handler, body: bytes) -> None:
    handler.wfile.write(b"hello\r\n\r\n")
