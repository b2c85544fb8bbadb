"""A local stand-in for the Hugging Face Hub: uploads and downloads over HTTP, kept in memory.

Speaks what huggingface_hub sends to find and create a model repository, to create a branch, to list and check
files, to upload large ones by Git LFS (whole or in parts, then verified) or by Xet (in compressed chunks, as
the package hf_xet does), to commit, and to download single files.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
from huggingface_hub import ModelCard

# Files of at least so many bytes are uploaded in parts, of so many.
LARGE, PART = 110_000, 50_000
WRITER, READER, XET = "hf_writer", "hf_reader", "xet_token"
COMMIT = "0" * 40  # the name of any commit


@dataclass
class Repository:
    """A model repository: visibility, files by branch and path, and commit messages."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


class RefusedError(Exception):
    """An error that the Hub answers with: status, code and message."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Hub:
    """The Hub's state; `failing` makes the requests whose path it matches fail with status 500."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.chunks: list[bytes] = []  # of files uploaded by Xet, in order
        self.verified: set[str] = set()
        self.requests: list[str] = []
        self.failing: str | None = None
        self.url = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[Any, dict[str, str]]:
        """The answer to a request, bytes or a value for JSON, and headers."""
        self.requests.append(f"{method} {path}")
        if self.failing is not None and re.search(self.failing, path):
            raise RefusedError(500, "out of order")
        for known, pattern, reply in _ROUTES:
            found = re.fullmatch(pattern, path)
            if method in known.split() and found:
                # Addresses for uploads carry their own authorisation, and Xet's store has a token of its own.
                upload = path.startswith("/upload/") or (token == XET and path.startswith("/v1/"))
                if not upload and token not in (WRITER, READER):
                    raise RefusedError(401, "Invalid username or password.")
                if method == "POST" and not upload and token == READER:
                    raise RefusedError(403, "this token may only read")
                answered = reply(self, *map(unquote, found.groups()), body)
                return answered if isinstance(answered, tuple) else (answered, {})
        raise RefusedError(404, f"the stand-in knows no {method} {path}")

    def repository(self, name: str) -> Repository:
        if name not in self.repositories:
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        return self.repositories[name]

    def branch(self, name: str, revision: str) -> dict[str, bytes]:
        branches = self.repository(name).branches
        if revision not in branches:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return branches[revision]

    def info(self, name: str, body: bytes) -> dict[str, Any]:
        return {"id": name, "private": self.repository(name).private, "sha": COMMIT}

    def revision(self, name: str, revision: str, body: bytes) -> dict[str, Any]:
        self.branch(name, revision)
        return self.info(name, body)

    def create(self, body: bytes) -> dict[str, Any]:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repositories:
            raise RefusedError(409, "You already created this model repo")
        self.repositories[name] = Repository(asked["visibility"] == "private")
        return {"url": f"{self.url}/{name}"}

    def validate(self, body: bytes) -> dict[str, Any]:
        ModelCard(json.loads(body)["content"])
        return {"errors": [], "warnings": []}

    def create_branch(self, name: str, revision: str, body: bytes) -> dict[str, Any]:
        branches = self.repository(name).branches
        if revision in branches:
            raise RefusedError(409, "Reference already exists")
        branches[revision] = dict(branches["main"])
        return {}

    def tree(self, name: str, revision: str, body: bytes) -> list[dict[str, Any]]:
        files = self.branch(name, revision)
        return [
            {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            for path, content in files.items()
        ]

    def resolve(self, name: str, revision: str, path: str, body: bytes) -> tuple[bytes, dict[str, str]]:
        branches = self.repository(name).branches
        files = self.branch(name, "main" if revision == COMMIT and "main" in branches else revision)
        if path not in files:
            raise RefusedError(404, f"no {path}", "EntryNotFound")
        return files[path], {"ETag": f'"{git_hash(files[path])}"', "X-Repo-Commit": COMMIT}

    def preupload(self, name: str, revision: str, body: bytes) -> dict[str, Any]:
        there = self.branch(name, revision)
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            large = path.endswith(".safetensors")
            content = there.get(path)
            hashed = hashlib.sha256(content or b"").hexdigest() if large else git_hash(content or b"")
            oid = None if content is None else hashed
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def batch(self, name: str, body: bytes) -> dict[str, Any]:
        self.repository(name)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            header, href = {}, f"{self.url}/upload/{oid}"
            if size >= LARGE:
                count = -(-size // PART)
                header = {"chunk_size": str(PART)}
                header |= {f"{n:05d}": f"{href}/{n}" for n in range(1, count + 1)}
                href += "/complete"
            verify = {"href": f"{self.url}/api/verify"}
            actions = {"upload": {"href": href, "header": header}, "verify": verify}
            objects.append({"oid": oid, "size": size, "actions": actions})
        return {"transfer": "multipart", "objects": objects}

    def put(self, oid: str, body: bytes) -> dict[str, Any]:
        self.objects[oid] = body
        return {}

    def put_part(self, oid: str, number: str, body: bytes) -> tuple[dict[str, Any], dict[str, str]]:
        self.parts.setdefault(oid, {})[int(number)] = body
        return {}, {"etag": hashlib.md5(body).hexdigest()}

    def complete(self, oid: str, body: bytes) -> dict[str, Any]:
        parts = self.parts.pop(oid)
        for said in json.loads(body)["parts"]:
            assert hashlib.md5(parts[said["partNumber"]]).hexdigest() == said["etag"]
        self.objects[oid] = b"".join(parts[number] for number in sorted(parts))
        return {}

    def verify(self, body: bytes) -> dict[str, Any]:
        said = json.loads(body)
        content = self.objects[said["oid"]]
        if hashlib.sha256(content).hexdigest() != said["oid"] or len(content) != said["size"]:
            raise RefusedError(422, "the object is not what was announced")
        self.verified.add(said["oid"])
        return {}

    def xet_token(self, name: str, revision: str, body: bytes) -> dict[str, Any]:
        self.branch(name, revision)
        return {"accessToken": XET, "casUrl": self.url, "exp": int(time.time()) + 3600}

    def xorb(self, body: bytes) -> dict[str, Any]:
        self.chunks += xet_chunks(body)
        return {"was_inserted": True}

    def shard(self, body: bytes) -> dict[str, Any]:
        return {"result": 1}

    def large_file(self, oid: str, size: int) -> bytes:
        """The content of a large file that a commit names: by LFS, or by Xet in successive chunks."""
        if oid in self.verified:
            return self.objects[oid]
        for start in range(len(self.chunks)):
            content = b""
            for chunk in self.chunks[start:]:
                content += chunk
                if len(content) >= size:
                    break
            if len(content) == size and hashlib.sha256(content).hexdigest() == oid:
                return content
        raise RefusedError(404, f"no object {oid}")

    def commit(self, name: str, revision: str, body: bytes) -> dict[str, Any]:
        files = dict(self.branch(name, revision))
        repository = self.repository(name)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    repository.commits.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.large_file(value["oid"], value["size"])
                case "deletedFile":
                    del files[value["path"]]
        repository.branches[revision] = files
        oid = hashlib.sha1(body).hexdigest()
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}"}


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", f"/api/models/{_NAME}", Hub.info),
    ("GET", f"/api/models/{_NAME}/revision/([^/]+)", Hub.revision),
    ("GET HEAD", f"/{_NAME}/resolve/([^/]+)/(.+)", Hub.resolve),
    ("POST", "/api/repos/create", Hub.create),
    ("POST", "/api/validate-yaml", Hub.validate),
    ("POST", f"/api/models/{_NAME}/branch/([^/]+)", Hub.create_branch),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)", Hub.tree),
    ("POST", f"/api/models/{_NAME}/preupload/([^/]+)", Hub.preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", r"/upload/(\w+)", Hub.put),
    ("PUT", r"/upload/(\w+)/(\d+)", Hub.put_part),
    ("POST", r"/upload/(\w+)/complete", Hub.complete),
    ("POST", "/api/verify", Hub.verify),
    ("GET", f"/api/models/{_NAME}/xet-write-token/([^/]+)", Hub.xet_token),
    ("POST", r"/v1/xorbs/default/\w+", Hub.xorb),
    ("POST", "/v1/shards", Hub.shard),
    ("POST", f"/api/models/{_NAME}/commit/([^/]+)", Hub.commit),
)


def xet_chunks(xorb: bytes) -> list[bytes]:
    """The chunks of a Xet object: each has 8 bytes of header (version, two sizes, scheme), then its data.

    Scheme 0 is plain, 1 an LZ4 frame, 2 an LZ4 frame of the bytes grouped by their place modulo 4.
    """
    chunks, at = [], 0
    while at < len(xorb) and xorb[at] == 0:
        stored, scheme = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        size = int.from_bytes(xorb[at + 5 : at + 8], "little")
        data = xorb[at + 8 : at + 8 + stored]
        at += 8 + stored
        if scheme:
            data = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "lz4").read()
        if scheme == 2:
            grouped, data, used = data, bytearray(size), 0
            for place in range(4):
                count = len(range(place, size, 4))
                data[place::4] = grouped[used : used + count]
                used += count
        chunks.append(bytes(data))
        assert len(chunks[-1]) == size
    return chunks


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The stand-in at an address of this machine, until the end of the block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self._body()
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
            status, extra = 200, {}
            try:
                content, extra = hub.answer(self.command, urlsplit(self.path).path, token, body)
            except RefusedError as error:
                status, content = error.status, {"error": error.message}
                extra = {"X-Error-Message": error.message}
                extra |= {"X-Error-Code": error.code} if error.code else {}
            answer = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**extra, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        def _body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        do_GET = do_HEAD = do_POST = do_PUT = _reply  # noqa: N815 (as http.server calls them)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
