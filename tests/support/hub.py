"""A stand-in for the Hugging Face hub: as much of its HTTP interface as an upload needs."""

import json
import re
from base64 import b64decode
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml


class Hub:
    """Repositories of one token: files by name, and who may see them."""

    def __init__(self, token):
        self.token, self.files, self.visibility, self.uploads = token, {}, {}, []
        self.large = {}  # content by digest
        self.is_full = False

    def create(self, repo, body):
        name = f"{body['organization']}/{body['name']}"
        assert body["type"] == "dataset"
        if name in self.files:
            return 409, {"error": "exists", "url": f"{self.address}/datasets/{name}"}
        self.files[name], self.visibility[name] = {}, body["visibility"]
        return 200, {"url": f"{self.address}/datasets/{name}"}

    def tree(self, repo, body):
        return 200, [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.files[repo].items()
        ]

    def validate(self, repo, body):
        assert yaml.safe_load(body["content"].split("---")[1])["configs"]
        return 200, {"warnings": [], "errors": []}

    def preupload(self, repo, body):
        large = re.compile(r".*\.(tar|parquet)")
        return 200, {"files": [
            {"path": it["path"], "uploadMode": "lfs" if large.fullmatch(it["path"]) else "regular",
             "shouldIgnore": False}
            for it in body["files"]
        ]}  # fmt: skip

    def batch(self, repo, body):
        """Git LFS' batch: where the content of each object is to be sent."""
        return 200, {"transfer": "basic", "objects": [
            it if it["oid"] in self.large else
            {**it, "actions": {"upload": {"href": f"{self.address}/upload/{it['oid']}"}}}
            for it in body["objects"]
        ]}  # fmt: skip

    def commit(self, repo, lines):
        files = self.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                assert line["key"] == "header"
        url = f"{self.address}/datasets/{repo}/commit/1"
        return 200, {"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""}

    ROUTES = (
        ("POST", r"/api/repos/create()", "create"),
        ("GET", r"/api/datasets/([^/]+/[^/]+)/tree/main", "tree"),
        ("POST", r"/api/validate-yaml()", "validate"),
        ("POST", r"/api/datasets/([^/]+/[^/]+)/preupload/main", "preupload"),
        ("POST", r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("POST", r"/api/datasets/([^/]+/[^/]+)/commit/main", "commit"),
    )

    def reply(self, method, path, headers, content):
        path = path.partition("?")[0]
        if method == "PUT":
            oid = path.removeprefix("/upload/")
            if self.is_full:
                return 403, {"error": "no space"}
            assert sha256(content).hexdigest() == oid
            self.large[oid] = content
            self.uploads.append(oid)
            return 200, {}
        for verb, pattern, name in self.ROUTES:
            if (match := re.fullmatch(pattern, path)) and verb == method:
                if headers["Authorization"] != f"Bearer {self.token}":
                    return 401, {"error": "Invalid credentials"}
                body = content.decode()
                parsed = (
                    [json.loads(line) for line in body.splitlines()]
                    if name == "commit"
                    else json.loads(body or "null")
                )
                return getattr(self, name)(match[1], parsed)
        return 404, {"error": f"no {method} {path}"}


@contextmanager
def hub(token="hf_secret"):
    """Serve a stand-in on this machine."""
    found = Hub(token)

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = found.reply(self.command, self.path, self.headers, content)
            encoded = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_PUT = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.address = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
