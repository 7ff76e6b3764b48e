#!/usr/bin/env python3
"""A service that knows nothing of the mesh: Python's standard library, one port.

    app.py PORT [MESH]

MESH is its sidecar's outbound address, as "127.0.0.1:7001". With it, `/call/SERVICE/PATH` asks
another service of the mesh: the name goes into `Host`, the sidecar does the rest.
"""

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1])
MESH = sys.argv[2] if len(sys.argv) > 2 else None
# What makes calls one trace, and ends them in time: handed on as they came.
CONTEXT = ("traceparent", "tracestate", "x-request-id")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            self.answer(200, {"ok": True})
        elif self.path.startswith("/call/") and MESH:
            self.call()
        else:
            trace = self.headers.get("traceparent")
            self.answer(200, {"app": PORT, "path": self.path, "traceparent": trace})

    def call(self):
        _, _, service, *path = self.path.split("/")
        headers = {name: self.headers[name] for name in CONTEXT if name in self.headers}
        mesh = http.client.HTTPConnection(MESH, timeout=20)
        try:
            mesh.request("GET", "/" + "/".join(path), headers={"Host": service, **headers})
            answer = mesh.getresponse()
            text = answer.read().decode("utf-8", "replace")
        except OSError as error:
            self.answer(502, {"error": str(error)})
        else:
            self.answer(answer.status, {service: text})
        finally:
            mesh.close()

    def answer(self, status, document):
        body = json.dumps(document).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """The sidecar's access log has it."""


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
