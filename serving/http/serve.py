"""`keyart serve`: a bundle behind HTTP, small and complete enough to measure a real service against.

One process (or several, `serving.http.workers`): an event loop reads and writes, two threads run the graph over the requests that
arrived meanwhile. Needs the extra `serve`, and no torch. `serving.http.application` answers, `serving.http.requests` reads
requests.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from foundation.errors import UserError
from serving.http.config import ServeConfig
from serving.http.process import banner, prepare_process


def serve(folder: Path, config: ServeConfig, console: Console) -> None:
    """Answer until SIGTERM or Ctrl-C. UserError where the extra is missing, the folder is not a bundle or the port is taken."""
    try:
        from serving.http.application import Service
        from serving.http.connections import allow_files, listen, run
        from serving.http.workers import serve_by_workers
    except ImportError as error:
        raise UserError(
            f"keyart serve: {error.name} is not installed. Install the extra: uv sync --extra serve."
        ) from None

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    allow_files(config.connections)
    if config.workers > 1:
        serve_by_workers(folder, config, say)
        say("Stopped.")
        return
    prepare_process()
    with listen(config) as listening:
        config = replace(config, port=listening.getsockname()[1])
        service = Service(folder, config, say)
        say(banner(folder, config, service.generation.curl))
        run(service.application(), listening, config, service.connections, service.service_metrics)
    say("Stopped.")
    if service.lanes.stuck(0):  # a thread still computes: it would hold up the end of the process
        sys.stdout.flush()
        os._exit(0)
