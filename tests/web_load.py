"""The page under a crowd: how many of a hundred clients at once are served, how many are refused, how long it takes.

    python tests/web_load.py --clients 100 --json benchmarks/web-load.json

Each client asks for a run of its own seed through the page's API, all at the same moment. The page runs in a process of
its own, on a small model with fresh weights, on one thread. Exit code 1 unless every client is served or told that the
queue is full, and the next one is served.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import httpx
import psutil

from exptilt.provenance import commit
from exptilt.storage import write_json
from web_page import Served, save_model, served


async def ask(client: httpx.AsyncClient, page: Served, model: Path, seed: int, steps: int) -> tuple[str, float]:
    """One run: how it ended ("served", "refused", or what else), and the seconds until then."""
    began = time.monotonic()
    address = f"{page.address}/gradio_api/call/sample"
    try:
        joined = await client.post(address, json={"data": [str(model), steps, 0.05, 1.0, seed, 4, "none", 1.0]})
        if joined.status_code == 503 and "Queue is full" in joined.text:
            return "refused", time.monotonic() - began
        if joined.status_code != 200:
            return f"status {joined.status_code}", time.monotonic() - began
        told = (await client.get(f"{address}/{joined.json()['event_id']}")).text
        whole = told.strip().split("\n\n")[-1].startswith("event: complete") and "data-done" in told
        return "served" if whole else "error", time.monotonic() - began
    except httpx.HTTPError as error:
        return type(error).__name__, time.monotonic() - began


async def crowd(page: Served, model: Path, clients: int, steps: int) -> tuple[list[tuple[str, float]], list[float]]:
    """All clients at once, and the page's memory in MiB four times a second meanwhile."""
    process, memory = psutil.Process(page.process.pid), []

    async def watch() -> None:
        while True:
            memory.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(0.25)

    # Each request on a connection of its own: the page closes idle ones after seconds, in the middle of a next request.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(ask(client, page, model, seed, steps) for seed in range(clients)))
        watching.cancel()
    return list(answers), memory


def probes(page: Served, model: Path) -> dict[str, int]:
    """What the page answers to requests that it should refuse: the status of each."""
    call, files = f"{page.address}/gradio_api/call/sample", f"{page.address}/gradio_api/file="
    with httpx.Client(timeout=60) as client:
        return {
            "a body of 1 MB": client.post(call, json={"data": ["x" * 1_000_000]}).status_code,
            "an upload": client.post(
                f"{page.address}/gradio_api/upload", files={"files": ("a.txt", b"more than a byte")}
            ).status_code,
            "another host's name": client.get(page.address, headers={"host": "attacker.example"}).status_code,
            "a page of another site": client.post(
                call, json={"data": []}, headers={"origin": "http://attacker.example"}
            ).status_code,
            "/etc/passwd": client.get(f"{files}/etc/passwd").status_code,
            "a path with ..": client.get(f"{files}../../../../etc/passwd").status_code,
            "a file of the model": client.get(f"{files}{model / 'model_index.json'}").status_code,
            "a file elsewhere": client.get(f"{page.address}/static/..%2f..%2f..%2fetc/passwd").status_code,
            "an address to fetch": client.get(f"{page.address}/gradio_api/proxy=http://127.0.0.1:1/x").status_code,
        }


def measure(clients: int, steps: int, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The figures of one crowd; they are saved before the page is stopped."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder) / "model", steps=steps)
        (Path(folder) / "server").mkdir()
        with served(Path(folder) / "server", model) as page:
            first, _ = asyncio.run(crowd(page, model, 1, steps))
            before = psutil.Process(page.process.pid).memory_info().rss / 2**20
            began = time.monotonic()
            answers, memory = asyncio.run(crowd(page, model, clients, steps))
            seconds = time.monotonic() - began
            after, _ = asyncio.run(crowd(page, model, 1, steps))
            answered = probes(page, model)
            served_in = sorted(took for ended, took in answers if ended == "served")
            refused_in = [took for ended, took in answers if ended == "refused"]
            result = {
                "clients": clients,
                "steps": steps,
                "ended": dict(Counter(ended for ended, _ in answers)),
                "seconds": round(seconds, 2),
                "served_seconds": {
                    "median": round(statistics.median(served_in), 2),
                    "p95": round(served_in[int(0.95 * (len(served_in) - 1))], 2),
                    "most": round(served_in[-1], 2),
                },
                "refused_seconds_most": round(max(refused_in, default=0.0), 2),
                "alone_seconds": {"before": round(first[0][1], 2), "after": round(after[0][1], 2)},
                "next_one": after[0][0],
                "memory_mib": {"before": round(before), "most": round(max(memory)), "after": round(memory[-1])},
                "probes": answered,
            }
            save(result)
            return result


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    versions = {"python": platform.python_version(), "gradio": gradio.__version__, "httpx": httpx.__version__}
    origin = {"command": f"python tests/web_load.py --clients {args.clients} --steps {args.steps}"}
    origin |= {"commit": commit(), "versions": versions}

    def save(result: dict[str, Any]) -> None:
        for name, value in result.items():
            print(f"{name}: {value}")
        if args.json is not None:
            write_json(args.json, origin | result)

    result = measure(args.clients, args.steps, save)
    well = set(result["ended"]) <= {"served", "refused"} and result["next_one"] == "served"
    return 0 if well and all(400 <= status < 500 for status in result["probes"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
