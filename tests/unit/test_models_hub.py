"""The Hub path through the real huggingface_hub, against a small Hub on loopback that can be stopped.

huggingface_hub reads its environment when it is imported, so every look-up is a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = "acme/tiny-clip"
FIRST, SECOND = "1" * 40, "2" * 40

_FIND = """
import json, sys
from pipeline.errors import CatvecError
from pipeline.models.source import find_model
from pipeline.settings import ModelSettings
settings, registered = json.loads(sys.argv[1])
try:
    files = find_model(ModelSettings(**settings), registered_revision=registered)
    print(json.dumps({"revision": files.revision, "source": files.source, "folder": str(files.folder)}))
except CatvecError as error:
    print(json.dumps({"error": error.message, "hint": error.hint, "kind": type(error).__name__}))
"""
_LOAD = """
import json, sys
from pipeline.models.encoder import load_encoder
from pipeline.models.self_test import self_test
from pipeline.settings import ModelSettings
encoder = load_encoder(ModelSettings(**json.loads(sys.argv[1])[0]))
self_test(encoder)
spec = encoder.spec
print(json.dumps({"name": spec.name, "source": spec.source, "revision": spec.revision, "dims": spec.dims,
                  "has_text": spec.has_text, "texts": encoder.encode_texts(["red mug"]).shape}))
"""


@dataclass
class Hub:
    """One repository whose commits are folders; `main` names one of them."""

    commits: dict[str, Path]
    main: str
    refuses_weights: bool = False
    requests: list[str] = field(default_factory=list)

    def folder(self, revision: str) -> Path | None:
        return self.commits.get(self.main if revision == "main" else revision)

    def commit(self, revision: str) -> str:
        return self.main if revision == "main" else revision


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.requests.append(f"{self.command} {path}")
        is_api = path.startswith("api/models/")
        repository, _, rest = path.removeprefix("api/models/").partition("/tiny-clip/")
        verb, _, rest = rest.partition("/")
        revision, _, name = rest.partition("/")
        folder = self.hub.folder(revision)
        if repository != "acme":
            self._send(401, {"X-Error-Message": "Invalid username or password."}, b"")
        elif folder is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
        elif is_api:
            self._send(200, {"Content-Type": "application/json"}, self._describe(folder, verb, revision))
        elif self.hub.refuses_weights and name.endswith(".safetensors"):
            self._send(403, {}, b"")
        elif not (folder / name).is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        else:
            self._send_file(folder / name, revision)

    def _describe(self, folder: Path, verb: str, revision: str) -> bytes:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if verb == "tree":
            tree = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _etag(path)} for path in files
            ]
            return json.dumps(tree).encode()
        siblings = [{"rfilename": path.name} for path in files]
        return json.dumps({"id": REPOSITORY, "sha": self.hub.commit(revision), "siblings": siblings}).encode()

    def _send_file(self, path: Path, revision: str) -> None:
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": self.hub.commit(revision)}
        self._send(200, headers, path.read_bytes())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def _serve(hub: Hub) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Client:
    """Runs catvec's look-up in its own process with its own cache."""

    home: Path
    endpoint: str = "http://127.0.0.1:1"  # nobody listens there

    def find(self, registered: str | None = None, environment: dict[str, str] | None = None, **settings: str) -> Any:
        return self._run(_FIND, [{"model": REPOSITORY} | settings, registered], environment or {})

    def load(self) -> Any:
        return self._run(_LOAD, [{"model": REPOSITORY, "device": "cpu"}], {})

    def _run(self, program: str, arguments: list[Any], environment: dict[str, str]) -> Any:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, json.dumps(arguments)],
            env=clean
            | {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "NO_PROXY": "127.0.0.1"}
            | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)


@pytest.fixture
def hub(tiny_clip: Path, tiny_clip_other: Path) -> Hub:
    return Hub(commits={FIRST: tiny_clip, SECOND: tiny_clip_other}, main=FIRST)


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(home=tmp_path / "hf")


def test_a_model_is_downloaded_once_and_then_needs_no_hub(hub: Hub, client: Client) -> None:
    with _serve(hub) as client.endpoint:
        loaded = client.load()
        requests = len(hub.requests)
        assert client.find()["revision"] == FIRST
        assert len(hub.requests) == requests
    assert loaded == {
        "name": "tiny_clip",
        "source": REPOSITORY,
        "revision": FIRST,
        "dims": 32,
        "has_text": True,
        "texts": [1, 32],
    }
    assert client.find()["revision"] == FIRST
    assert client.find(environment={"HF_HUB_OFFLINE": "1"})["revision"] == FIRST


def test_a_main_that_moved_changes_nothing_for_a_database_that_knows_the_model(hub: Hub, client: Client) -> None:
    hub.main = SECOND
    with _serve(hub) as client.endpoint:
        assert client.find(registered=FIRST)["revision"] == FIRST
        assert client.find()["revision"] == SECOND
        assert client.find(registered="sha256:0123")["revision"] == SECOND
        assert client.find(registered=SECOND, revision=FIRST)["revision"] == FIRST


def test_a_download_that_stopped_before_the_weights_is_taken_up_again(hub: Hub, client: Client) -> None:
    hub.refuses_weights = True
    with _serve(hub) as client.endpoint:
        assert "the Hub answered with status 403" in client.find()["error"]
    assert "HF_HUB_OFFLINE is set" in client.find(environment={"HF_HUB_OFFLINE": "1"})["error"]
    hub.refuses_weights = False
    with _serve(hub) as client.endpoint:
        folder = Path(client.find()["folder"])
    assert (folder / "model.safetensors").read_bytes() == (hub.commits[FIRST] / "model.safetensors").read_bytes()


def test_weights_out_of_reach_name_the_model_the_cache_and_the_ways_out(client: Client) -> None:
    found = client.find()
    assert found["error"] == (
        f"model 'acme/tiny-clip' at revision 'main' cannot be had: it is not in the cache, and the Hub cannot be "
        f"reached; searched the cache {client.home}/hub"
    )
    assert found["kind"] == "ModelError"  # it may be there next time
    assert "hf download acme/tiny-clip" in found["hint"]
    assert "HF_HOME" in found["hint"]
    assert "HF_ENDPOINT" in found["hint"]
    offline = client.find(environment={"HF_HUB_OFFLINE": "1"})
    assert "it is not in the cache, and HF_HUB_OFFLINE is set" in offline["error"]


@pytest.mark.parametrize("meant", ["models/shoes", "model/shoes"])
def test_a_folder_that_is_spelled_like_a_hub_id_is_proposed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meant: str
) -> None:
    (tmp_path / "models" / "shoes").mkdir(parents=True)
    (tmp_path / "models" / "shoes" / "config.json").write_text("{}")
    (tmp_path / "models" / "shops").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)

    found = client.find(model=meant.replace("shoes", "shoe"))

    assert (found["kind"], found["hint"]) == ("ConfigError", "did you mean the folder 'models/shoes'?")
    assert "it is not in the cache, and the Hub cannot be reached" in found["error"]


def test_an_unknown_model_or_revision_is_said_to_be_unknown(hub: Hub, client: Client) -> None:
    with _serve(hub) as client.endpoint:
        unknown, unknown_revision = client.find(model="nobody/nothing"), client.find(revision="v9")
        assert "the Hub has no such model, or it is private" in unknown["error"]
        assert "the model has no such revision" in unknown_revision["error"]
        assert (unknown["kind"], unknown_revision["kind"]) == ("ConfigError", "ConfigError")
        mirror = replace(client, endpoint=client.endpoint.replace("http://", "http://user:secret@"))
        assert "secret" not in json.dumps(mirror.find(revision="v9"))


def test_a_repository_without_weights_is_no_model(hub: Hub, client: Client, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((hub.commits[FIRST] / "config.json").read_bytes())
    hub.commits[FIRST] = bare
    with _serve(hub) as client.endpoint:
        assert client.find()["error"] == (
            f"acme/tiny-clip at {FIRST} is no complete transformers model, expected config.json, "
            "preprocessor_config.json, model.safetensors or pytorch_model.bin, and a tokenizer if it reads text"
        )
