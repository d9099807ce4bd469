"""A server on this machine that serves, refuses, stalls, cuts off, and lies."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HTML = b"<html><body>please log in</body></html>"


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.script` says: one word a request, the last word for ever."""

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range")))
        word = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        data = server.files.get(self.path.rsplit("/", 1)[1])
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if word == "gone" or data is None:
            self.send_error(404)
        elif word == "html":
            self.answer(200, HTML, type="text/html; charset=utf-8")
        elif word == "silent":
            server.done.wait(10)
        elif word == "garbage":
            self.answer(200, b"x" * len(data))
        elif word == "endless":
            self.answer(200, data + b"x" * 5_000_000)
        elif word == "long":
            self.answer(200, data[:3], length="9" * 5000)
        elif word == "slow":
            self.server.done.wait(0.3)
            self.answer(200, data)
        elif word == "no range" or first == 0:
            self.answer(200, data, stop=word)
        elif word == "another range":
            self.answer(206, data, range=f"bytes 0-{len(data) - 1}/{len(data)}")
        elif first >= len(data):
            self.send_error(416)
        else:
            self.answer(206, data[first:], range=f"bytes {first}-{len(data) - 1}/{len(data)}", stop=word)

    def answer(self, code, data, type="application/octet-stream", range=None, stop="", length=None):
        self.send_response(code)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", length or str(len(data)))
        if range:
            self.send_header("Content-Range", range)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if stop in ("cut", "stall") else data)
        if stop == "stall":
            self.wfile.flush()
            self.server.done.wait(10)

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, address):
        pass  # a client that hangs up is what some tests want
