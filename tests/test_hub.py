"""Test downloads and uploads by the real huggingface_hub client, with a small Hub that the test starts."""

import base64
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load

from spring_rag.backbone import BackboneRecord
from spring_rag.errors import BackboneMismatchError, TokensError
from spring_rag.persistence.published import PUBLISHED, PUBLISHED_REPO
from spring_rag.tokens import VirtualTokens

WRITE_TOKEN = "hf_test"


class LocalHub(ThreadingHTTPServer):
    """As much of the Hub's protocol as huggingface_hub needs to read and write small model repositories.

    Attributes:
        repos: files by path, by repository.
        log: every request, as `"METHOD path"`.
        failing: status to answer everything with, instead of serving it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.failing: int | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def commit_hash(self, repo: str) -> str:
        content = repr(sorted(self.repos[repo].items())).encode()
        return hashlib.sha1(content, usedforsecurity=False).hexdigest()


class _HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean; requests are in `LocalHub.log`."""

    def _reply(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._reply(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code} | (headers or {}))

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _route(self) -> None:
        hub = self.server
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        hub.log.append(f"{self.command} {path}")
        if hub.failing is not None:
            self._reply(hub.failing, {"error": "out of order"})
        elif self.command in ("GET", "HEAD"):
            self._read(path)
        elif self.command == "PUT":  # to an address that the server gave out for this upload
            hub.lfs[path.rsplit("/", 1)[-1]] = body
            self._reply(200, {})
        elif self.headers.get("Authorization") != f"Bearer {WRITE_TOKEN}":
            self._reply(401, {"error": "Invalid username or password."})
        else:
            self._write(path, body)

    do_GET = do_HEAD = do_POST = do_PUT = _route  # noqa: N815 (the base class finds them by these names)

    def _read(self, path: str) -> None:
        hub = self.server
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = info or resolve
        if found is None or found[1] not in hub.repos:
            self._missing("RepoNotFound")
            return
        repo = found[1]
        commit = hub.commit_hash(repo)
        revision = resolve[2] if resolve else info[3] if info else None
        if revision not in (None, "main", commit):
            self._missing("RevisionNotFound")
        elif resolve:
            content = hub.repos[repo].get(resolve[3])
            headers = {"X-Repo-Commit": commit}
            if content is None:
                self._missing("EntryNotFound", headers)
            else:
                etag = hashlib.sha256(content).hexdigest()
                self._reply(200, content, headers | {"ETag": f'"{etag}"'})
        elif info and info[2] == "tree":
            entries = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": hashlib.sha256(content).hexdigest(),
                }
                for name, content in hub.repos[repo].items()
            ]
            self._reply(200, entries)
        else:
            self._reply(200, {"id": repo, "sha": commit})

    def _write(self, path: str, body: bytes) -> None:
        hub = self.server
        repo_call = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if repo in hub.repos else 200
            hub.repos.setdefault(repo, {})
            hub.private.setdefault(repo, wanted.get("visibility") == "private")
            self._reply(status, {"url": f"{hub.url}/{repo}"})
        elif path == "/api/validate-yaml":
            self._reply(200, {"errors": [], "warnings": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._reply(200, {"transfer": "basic", "objects": objects})
        elif repo_call and repo_call[2] == "preupload":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._reply(200, {"files": files})
        elif repo_call:
            self._commit(repo_call[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._missing("EntryNotFound")

    def _commit(self, repo: str, operations: list[dict[str, Any]]) -> None:
        files = self.server.repos[repo]
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
        commit = self.server.commit_hash(repo)
        url = f"{self.server.url}/{repo}/commit/{commit}"
        self._reply(200, {"success": True, "commitOid": commit, "commitUrl": url})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A running Hub that the client in this process talks to, with an empty cache and nobody logged in."""
    server = LocalHub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    use_endpoint(monkeypatch, server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def matrix(n: int = 3, hidden: int = 8) -> torch.Tensor:
    return torch.randn(n, hidden, generator=torch.Generator().manual_seed(0))


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def publish_tables(hub: LocalHub, n: int = 50) -> None:
    hub.repos[PUBLISHED_REPO] = {
        table.filename: torch_bytes(matrix(n, table.hidden_size)) for table in PUBLISHED.values()
    }


def saved_files(tokens: VirtualTokens, folder: Path) -> dict[str, bytes]:
    tokens.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(src: str, *words: str, **options: Any) -> None:
    with pytest.raises(TokensError) as caught:
        VirtualTokens.from_pretrained(src, **options)
    assert all(word in str(caught.value) for word in (src, *words)), str(caught.value)


class TestPublishedNames:
    def test_the_registry_is_the_authors_table(self) -> None:
        assert {name: (t.filename, t.backbone, t.hidden_size) for name, t in PUBLISHED.items()} == {
            name: (f"{file}.added_token_embeddings.pt", backbone, hidden)
            for name, file, backbone, hidden in [
                ("mistral-7b-instruct", "mistral.7b.instruct", "mistralai/Mistral-7B-Instruct-v0.1", 4096),
                ("mistral-7b", "mistral.7b.base", "mistralai/Mistral-7B-v0.1", 4096),
                ("llama-2-7b-chat", "llama2.7b.chat", "meta-llama/Llama-2-7b-chat-hf", 4096),
                ("llama-2-7b", "llama2.7b.base", "meta-llama/Llama-2-7b-hf", 4096),
                ("llama-2-13b-chat", "llama2.13b.chat", "meta-llama/Llama-2-13b-chat-hf", 5120),
                ("llama-2-13b", "llama2.13b.base", "meta-llama/Llama-2-13b-hf", 5120),
            ]
        }

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_download_binds_to_the_backbone(self, hub: LocalHub, name: str) -> None:
        publish_tables(hub)
        tokens = VirtualTokens.from_pretrained(name)
        assert len(tokens) == 50
        assert tokens.backbone == BackboneRecord(PUBLISHED[name].backbone, PUBLISHED[name].hidden_size)
        assert torch.equal(tokens.matrix, matrix(50, PUBLISHED[name].hidden_size))
        fetched = {line.rsplit("/", 1)[-1] for line in hub.log if "GET" in line and "/resolve/" in line}
        assert fetched == {PUBLISHED[name].filename}

    def test_llama_and_mistral_share_a_size_but_not_tokens(self, hub: LocalHub) -> None:
        publish_tables(hub)
        tokens = VirtualTokens.from_pretrained("mistral-7b-instruct")
        table = torch.empty(32000, 4096, device="meta")
        tokens.check(table, "mistralai/Mistral-7B-Instruct-v0.1")
        for other in (
            "meta-llama/Llama-2-7b-chat-hf",
            "mistralai/Mistral-7B-v0.1",
            "mistralai/Mistral-7B-Instruct-v0.2",
        ):
            with pytest.raises(
                BackboneMismatchError, match=f"'mistralai/Mistral-7B-Instruct-v0.1'.*'{other}'"
            ):
                tokens.check(table, other)

    def test_cache_serves_when_the_hub_is_gone(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        publish_tables(hub)
        first = VirtualTokens.from_pretrained("mistral-7b")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert VirtualTokens.from_pretrained("mistral-7b").digest == first.digest

    def test_a_folder_of_that_name_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        VirtualTokens(matrix()).save_pretrained(tmp_path / "mistral-7b")
        monkeypatch.chdir(tmp_path)
        assert len(VirtualTokens.from_pretrained("mistral-7b")) == 3

    def test_refuses_a_table_of_another_size(self, hub: LocalHub) -> None:
        publish_tables(hub, n=49)
        refused("llama-2-13b", "50 × 5120", "49 × 5120", "meta-llama/Llama-2-13b-hf")

    def test_refuses_a_hostile_table(self, hub: LocalHub, tmp_path: Path) -> None:
        class Hostile:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(tmp_path / "owned"),)

        hub.repos[PUBLISHED_REPO] = {PUBLISHED["mistral-7b"].filename: torch_bytes(Hostile())}
        with pytest.raises(TokensError, match="could run code"):
            VirtualTokens.from_pretrained("mistral-7b")
        assert not (tmp_path / "owned").exists()

    def test_missing_file(self, hub: LocalHub) -> None:
        hub.repos[PUBLISHED_REPO] = {"README.md": b""}
        with pytest.raises(TokensError, match="has no file mistral"):
            VirtualTokens.from_pretrained("mistral-7b")

    def test_the_repository_itself_points_to_the_names(self, hub: LocalHub) -> None:
        publish_tables(hub)
        refused(PUBLISHED_REPO, "mistral-7b-instruct")


class TestHubIds:
    def test_download(self, hub: LocalHub, tmp_path: Path) -> None:
        tokens = VirtualTokens(matrix(), backbone=BackboneRecord("acme/tiny", 8), training={"steps": 1})
        hub.repos["acme/tokens"] = saved_files(tokens, tmp_path / "a") | {"model.safetensors": b"unrelated"}
        again = VirtualTokens.from_pretrained("acme/tokens")
        assert (again.digest, again.backbone, again.training) == (
            tokens.digest,
            tokens.backbone,
            tokens.training,
        )
        assert not [line for line in hub.log if "model.safetensors" in line]

    def test_revision(self, hub: LocalHub, tmp_path: Path) -> None:
        hub.repos["acme/tokens"] = saved_files(VirtualTokens(matrix()), tmp_path / "a")
        commit = hub.commit_hash("acme/tokens")
        assert len(VirtualTokens.from_pretrained("acme/tokens", revision=commit)) == 3
        refused("acme/tokens", "no such revision", revision="v9")

    def test_unknown_repository(self, hub: LocalHub) -> None:
        refused("acme/nothing", "no such repository", "hf auth login")

    def test_repository_of_something_else(self, hub: LocalHub) -> None:
        hub.repos["acme/model"] = {"config.json": b"{}", "model.safetensors": b""}
        refused("acme/model", "holds no virtual tokens")
        hub.repos["acme/data"] = {"train.csv": b""}
        refused("acme/data", "holds no virtual tokens")

    def test_damaged_artifact(self, hub: LocalHub, tmp_path: Path) -> None:
        files = saved_files(VirtualTokens(matrix()), tmp_path / "a")
        files["virtual_tokens.safetensors"] = files["virtual_tokens.safetensors"][:-5]
        hub.repos["acme/tokens"] = files
        refused("acme/tokens", "truncated")

    @pytest.mark.parametrize("status", [403, 500])
    def test_hub_that_fails(self, hub: LocalHub, status: int) -> None:
        hub.failing = status
        refused("acme/tokens", f"status {status}")
        with pytest.raises(TokensError, match=f"status {status}"):
            VirtualTokens.from_pretrained("mistral-7b")

    @pytest.mark.parametrize("src", ["acme/tokens", "mistral-7b"])
    def test_connection_refused(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, src: str) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        use_endpoint(monkeypatch, url)
        with pytest.raises(TokensError, match=f"{url} can't be used .*; check the connection"):
            VirtualTokens.from_pretrained(src)

    @pytest.mark.parametrize("src", ["acme/tokens", "mistral-7b"])
    def test_offline(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, src: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(TokensError, match="HF_HUB_OFFLINE is set and the cache has no copy"):
            VirtualTokens.from_pretrained(src)
        assert not hub.log


class TestPush:
    def test_push_and_load_again(self, hub: LocalHub) -> None:
        tokens = VirtualTokens(matrix(), backbone=BackboneRecord("acme/tiny", 8), training={"steps": 1})
        url = tokens.push_to_hub("acme/tokens", token=WRITE_TOKEN)
        assert url == f"{hub.url}/acme/tokens/commit/{hub.commit_hash('acme/tokens')}"
        files = hub.repos["acme/tokens"]
        assert set(files) == {"README.md", "config.json", "virtual_tokens.safetensors"}
        assert torch.equal(load(files["virtual_tokens.safetensors"])["virtual_tokens"], tokens.matrix)
        again = VirtualTokens.from_pretrained("acme/tokens")
        assert (again.digest, again.backbone, again.training) == (
            tokens.digest,
            tokens.backbone,
            tokens.training,
        )

    def test_push_again_is_one_commit_of_the_new(self, hub: LocalHub) -> None:
        VirtualTokens(matrix()).push_to_hub("acme/tokens", token=WRITE_TOKEN)
        VirtualTokens(matrix(5)).push_to_hub("acme/tokens", token=WRITE_TOKEN)
        assert len(VirtualTokens.from_pretrained("acme/tokens")) == 5
        assert sum("/commit/" in line for line in hub.log) == 2

    def test_private(self, hub: LocalHub) -> None:
        VirtualTokens(matrix()).push_to_hub("acme/secret", private=True, token=WRITE_TOKEN)
        VirtualTokens(matrix()).push_to_hub("acme/open", private=False, token=WRITE_TOKEN)
        assert hub.private == {"acme/secret": True, "acme/open": False}

    def test_without_the_right_to_write(self, hub: LocalHub) -> None:
        with pytest.raises(TokensError, match=r"'acme/tokens'.*status 401.*hf auth login"):
            VirtualTokens(matrix()).push_to_hub("acme/tokens", token="hf_wrong")
        assert not hub.repos

    def test_offline(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(TokensError, match="HF_HUB_OFFLINE is set"):
            VirtualTokens(matrix()).push_to_hub("acme/tokens", token=WRITE_TOKEN)

    def test_not_a_repository_name(self, hub: LocalHub) -> None:
        with pytest.raises(TokensError, match="'a b/c'"):
            VirtualTokens(matrix()).push_to_hub("a b/c", token=WRITE_TOKEN)


def test_another_process_by_environment_alone(hub: LocalHub, tmp_path: Path) -> None:
    """Nothing patched: a fresh interpreter, told of the Hub by its environment, pushes and loads."""
    script = (
        "import sys, torch\n"
        "from spring_rag import VirtualTokens\n"
        "if sys.argv[1] == 'push':\n"
        "    VirtualTokens(torch.ones(2, 4)).push_to_hub('acme/tokens')\n"
        "print(len(VirtualTokens.from_pretrained('acme/tokens')))\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": WRITE_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    for step in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", script, "load" if step else "push"],
            env=environment | step,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
