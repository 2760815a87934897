"""Serve a folder on loopback, each answer after a pause: ``server.py FOLDER PAUSE``.

Prints its port.

A process of its own, so that it takes no time from what is measured but that of its core.
"""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """GET with kept-alive connections; the bytes go from the page cache to the socket."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    pause: float

    def do_GET(self) -> None:
        """Send one file."""
        time.sleep(self.pause)
        with (self.folder / self.path.lstrip("/")).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.send_header("Content-Type", "application/octet-stream")
            self.end_headers()
            self.wfile.flush()
            done = 0
            while done < size:
                done += os.sendfile(self.connection.fileno(), file.fileno(), done, size - done)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Takes many connections at once."""

    request_queue_size = 512
    daemon_threads = True


if __name__ == "__main__":
    Handler.folder, Handler.pause = Path(sys.argv[1]), float(sys.argv[2])
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
