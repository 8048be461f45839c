"""Asking a service that runs, and what it is started by."""

import json
from http.client import HTTPConnection
from typing import Any

from benchmarks.serve_load import Served

WITHOUT_TORCH = "import sys\nfor name in ('torch', 'torchvision', 'pytorch_lightning'):\n    sys.modules[name] = None\n"
IMPATIENT = """
from pathlib import Path
from rich.console import Console
from serving.http.config import ServeConfig
from serving.http.serve import serve
serve(Path({folder!r}), ServeConfig(port=0, body_seconds=1, head_seconds=1, deadline=20), Console())
"""
GOOD: dict[str, Any] = {"title": "t", "artworks": ["a", "b"]}
PLAYED = {"title": "t"}


def ask(at: Served, body: Any, path: str = "/rank") -> tuple[int, Any]:
    """Status and answer; `body`: what is sent as JSON, bytes as they are, or None to get the path."""
    connection = HTTPConnection(at.host, at.port, timeout=30)
    raw = body if isinstance(body, bytes | None) else json.dumps(body)
    connection.request("GET" if body is None else "POST", path, raw)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.headers["content-type"] == "application/json" else text


def ranked(at: Served, body: Any) -> Any:
    status, answer = ask(at, body)
    assert status == 200, answer
    return answer
