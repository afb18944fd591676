"""Locations in a bucket come to the cache whole, once, or with a clear word why not."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import pathlib
import socket
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.convert.fetch import cached_location, fetch

FILES = {
    "checkpoints/small/params/_METADATA": b"{}",
    "checkpoints/small/assets/norm_stats.json": b"stats" * 1000,
    "checkpoints/small_2/params/_METADATA": b"another checkpoint",
}


class Bucket:
    """A server with the two answers of the storage service that matter, two entries a page."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.damaged: set[str] = set()
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bucket.requests.append(self.path)
                address = urllib.parse.urlparse(self.path)
                query = dict(urllib.parse.parse_qsl(address.query))
                if query.get("alt") == "media":
                    name = urllib.parse.unquote(address.path.rpartition("/o/")[2])
                    self._answer(b"wrong" if name in bucket.damaged else FILES[name])
                    return
                names = sorted(name for name in FILES if name.startswith(query["prefix"]))
                start = int(query.get("pageToken", 0))
                items = [
                    {
                        "name": name,
                        "size": str(len(FILES[name])),
                        "md5Hash": base64.b64encode(hashlib.md5(FILES[name]).digest()).decode(),
                    }
                    for name in names[start : start + 2]
                ]
                more = {"nextPageToken": str(start + 2)} if start + 2 < len(names) else {}
                self._answer(json.dumps({"items": items, **more}).encode())

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    served = Bucket()
    yield served
    served.close()


def test_a_folder_comes_whole_and_only_once(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    variables, seen = {"OPENPI_DATA_HOME": str(tmp_path)}, []
    url = "gs://openpi-assets/checkpoints/small"
    path = fetch(url, lambda done, total: seen.append((done, total)), variables, bucket.endpoint)
    assert path == tmp_path / "openpi-assets" / "checkpoints" / "small"
    assert (path / "assets" / "norm_stats.json").read_bytes() == b"stats" * 1000
    assert (path / "params" / "_METADATA").read_bytes() == b"{}"
    assert sum(file.is_file() for file in path.rglob("*")) == 2
    assert seen[-1] == (5002, 5002)
    count = len(bucket.requests)
    assert fetch(url, lambda *_: None, variables, bucket.endpoint) == path
    assert len(bucket.requests) == count


def test_a_damaged_file_leaves_nothing_and_the_rest_is_not_fetched_again(
    bucket: Bucket, tmp_path: pathlib.Path
) -> None:
    variables = {"OPENPI_DATA_HOME": str(tmp_path)}
    bucket.damaged = {"checkpoints/small/params/_METADATA"}
    url = "gs://openpi-assets/checkpoints/small"
    with pytest.raises(CheckpointError, match="_METADATA arrived damaged"):
        fetch(url, lambda *_: None, variables, bucket.endpoint)
    assert not cached_location(url, variables).exists()
    bucket.damaged, before = set(), len(bucket.requests)
    fetch(url, lambda *_: None, variables, bucket.endpoint)
    again = [path for path in bucket.requests[before:] if "alt=media" in path]
    assert len(again) == 1


def test_nothing_there_and_nobody_there_are_different_errors(bucket: Bucket, tmp_path: pathlib.Path) -> None:
    variables = {"OPENPI_DATA_HOME": str(tmp_path)}
    with pytest.raises(CheckpointError, match="gs://openpi-assets/nothing holds nothing"):
        fetch("gs://openpi-assets/nothing", lambda *_: None, variables, bucket.endpoint)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            CheckpointError, match=r"cannot be fetched.*without a network, copy it to .*small"
        ):
            fetch("gs://openpi-assets/checkpoints/small", lambda *_: None, variables, endpoint)


@pytest.mark.parametrize("url", ["s3://bucket/path", "gs://bucket", "gs://bucket/a/../../b"])
def test_other_locations_are_refused(url: str) -> None:
    with pytest.raises(CheckpointError, match="expected a location like gs://bucket/path"):
        cached_location(url, {})
