# SPDX-License-Identifier: Apache-2.0
"""`lidargen download` through the real client against a local server that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import pytest

pytest.importorskip("huggingface_hub")

from lidargen_ros.errors import CheckpointError, ConfigError
from lidargen_ros.models import download as module
from lidargen_ros.models.download import SOURCES, Source, download, require_space

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"
MODEL = "nvidia/Cosmos-Transfer-LidarGen"
TOKENIZER = "nvidia/Cosmos-Tokenizer-CI8x8-Lidar"
EXAMPLE = "nvidia/Cosmos-Transfer-LidarGen-Example"
MB = 1_000_000
BIG = os.urandom(25 * MB)  # the client writes pieces of 10 MB
FILES = {
    ("models", MODEL): {"model.pt": BIG, "Cosmos-Tokenize1-CV8x8x8-720p-image/encoder.jit": b"e" * 100},
    ("models", TOKENIZER): {"encoder.jit": b"a", "decoder.jit": b"b", "mean_std.pt": b"c"},
    ("datasets", EXAMPLE): {"lidar_dataset_release/metadata/clip.npz": b"z" * 10},
}


class Hub(BaseHTTPRequestHandler):
    """Repository information, file tree, and files with ranges, as far as the client asks for them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlparse(self.path).path).strip("/")
        state = self.server.state
        state.requests.append((self.command, path, self.headers.get("Range")))
        api = path.startswith("api/")
        parts = path.removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        repository, rest = "/".join(parts[:2]), parts[2:]
        files = FILES.get((kind, repository))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, b"", {"X-Error-Code": "GatedRepo" if state.gated else "RepoNotFound"})
        if files is None:
            return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if api and rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            return self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": n.encode().hex()} for n, c in files.items()
            ]
            return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        if api:
            siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
            for sibling in siblings:
                if len(files[sibling["rfilename"]]) > 1000:  # kept in large file storage
                    digest = "0" * 64 if state.wrong_hash else hashlib.sha256(BIG).hexdigest()
                    sibling["lfs"] = {"size": sibling["size"], "sha256": digest, "pointerSize": 1}
            info = {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            return self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        name = "/".join(rest[2:])
        content, headers = files[name], {"ETag": f'"{name.encode().hex()}"', "X-Repo-Commit": COMMIT}
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        cut = state.cut_after if self.command == "GET" and len(part) > 1000 else None
        return self.reply(206 if start else 200, part, headers, cut)

    def reply(self, status, content, headers, cut_after=None):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut_after])
        if cut_after is not None:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = SimpleNamespace(requests=[], gated=False, cut_after=None, wrong_hash=False)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.state.url = f"http://127.0.0.1:{server.server_port}"
    yield server.state
    server.shutdown()
    server.server_close()
    thread.join()


SCRIPT = """
import sys, typer
from lidargen_ros.errors import LidargenError
from lidargen_ros.models.download import register
app = typer.Typer()
register(app)
try:
    app(standalone_mode=False)
except LidargenError as error:
    sys.exit(f"error: {error}")
"""


def run(hub, folder, *arguments, token=TOKEN, **environment):
    """The command in its own process, so that the client reads HF_ENDPOINT from its environment."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"NO_PROXY": "127.0.0.1"} | ({"HF_TOKEN": token} if token else {}) | environment
    command = [sys.executable, "-c", SCRIPT, "download", *arguments, "--out", str(folder)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def downloaded(folder, source):
    root = folder / source.folder
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in root.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }


def expected(source):
    return FILES[f"{source.kind}s", source.repository]


def test_everything(hub, tmp_path):
    result = run(hub, tmp_path)
    assert result.returncode == 0, result.stderr
    for source in SOURCES.values():
        assert downloaded(tmp_path, source) == expected(source)
        assert f"{source.name}: {tmp_path / source.folder}" in result.stdout
    assert "Fetching" in result.stderr or "%" in result.stderr  # progress
    fetched = [r for r in hub.requests if r[0] == "GET" and "/resolve/" in r[1]]
    again = run(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert [r for r in hub.requests if r[0] == "GET" and "/resolve/" in r[1]] == fetched  # nothing twice
    hub.requests.clear()
    offline = run(hub, tmp_path, "model", "--offline")
    assert offline.returncode == 0
    assert run(hub, tmp_path, "model", HF_HUB_OFFLINE="1").returncode == 0
    assert not hub.requests


def test_an_interrupted_download_goes_on(hub, tmp_path):
    hub.cut_after = 12 * MB
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "download", "model", "--out", str(tmp_path)],
        env={
            **{k: v for k, v in os.environ.items() if "proxy" not in k.lower()},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_TOKEN": TOKEN,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):  # the connection breaks; the client asks for the rest, and is killed there
            if any(r[2] and r[1].endswith("model.pt") for r in hub.requests if r[0] == "GET"):
                break
            threading.Event().wait(0.05)
    finally:
        process.kill()
        process.wait()
    root = tmp_path / SOURCES["model"].folder
    assert not (root / "model.pt").exists()  # nothing half-written under its name
    hub.cut_after = None
    hub.requests.clear()
    result = run(hub, tmp_path, "model")
    assert result.returncode == 0, result.stderr
    assert (root / "model.pt").read_bytes() == BIG
    ranges = [r[2] for r in hub.requests if r[0] == "GET" and r[1].endswith("model.pt")]
    assert ranges and all(ranges), ranges


def test_a_broken_connection_is_survived(hub, tmp_path):
    hub.cut_after = 20 * MB
    result = run(hub, tmp_path, "model")
    assert result.returncode == 0, result.stderr
    assert len([r for r in hub.requests if r[0] == "GET" and r[1].endswith("model.pt")]) > 1
    assert (tmp_path / SOURCES["model"].folder / "model.pt").read_bytes() == BIG


def test_a_damaged_file_is_not_kept(hub, tmp_path):
    hub.wrong_hash = True
    with pytest.raises(ConfigError, match="sha256"):
        download(SOURCES["model"], tmp_path, token=TOKEN, endpoint=hub.url)
    root = tmp_path / SOURCES["model"].folder
    assert not [p for p in root.iterdir() if p.name.endswith((".pt", ".part"))]


def test_no_token(hub, tmp_path):
    result = run(hub, tmp_path, "model", token=None)
    assert result.returncode == 1
    assert "error:" in result.stderr
    assert "token" in result.stderr.splitlines()[-1]
    hub.gated = True
    result = run(hub, tmp_path, "model", token="hf_wrong")
    assert "accept the licence" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()


def test_wrong_revision_and_name(hub, tmp_path):
    result = run(hub, tmp_path, "model", "--revision", "nonsense")
    assert "no revision nonsense" in result.stderr.splitlines()[-1]
    result = run(hub, tmp_path, "weights")
    assert "use model, lidar-tokenizer, example" in result.stderr.splitlines()[-1]


def test_no_server(hub, tmp_path):
    result = run(SimpleNamespace(url="http://127.0.0.1:9"), tmp_path, "model")
    assert result.returncode == 1
    assert "download failed" in result.stderr.splitlines()[-1]


def test_offline_without_files(hub, tmp_path):
    result = run(hub, tmp_path, "lidar-tokenizer", "--offline")
    assert "lacks encoder.jit, decoder.jit, mean_std.pt" in result.stderr.splitlines()[-1]
    assert not hub.requests


def test_space_is_checked_first(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda _: SimpleNamespace(free=module.SPARE_BYTES + 1000)
    )
    with pytest.raises(ConfigError, match=r"to be written.*--out"):
        download(SOURCES["model"], tmp_path, token=TOKEN, endpoint=hub.url)
    assert not any("/resolve/" in r[1] for r in hub.requests)
    assert not list(tmp_path.iterdir())
    download(SOURCES["lidar-tokenizer"], tmp_path, token=TOKEN, endpoint=hub.url)  # small enough
    (tmp_path / "x").write_bytes(b"1" * 5000)
    require_space(tmp_path, {"x": 5000})  # there already
    with pytest.raises(ConfigError):
        require_space(tmp_path, {"x": 5001})


def test_files_that_the_repository_lacks(hub, tmp_path):
    source = Source("t", TOKENIZER, "model", "t", ("encoder.jit", "gone.jit"))
    with pytest.raises(CheckpointError, match=r"gone\.jit"):
        download(source, tmp_path, token=TOKEN, endpoint=hub.url)
