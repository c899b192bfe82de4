"""Gains of shared batches in a server: several clients at once, and the same one after another.

python -m benchmarks.serve
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from statistics import median

PORT = 8765
ADDRESS = f"http://127.0.0.1:{PORT}"


def main() -> None:
    """Start a server, ask it in turns, and print the ratio of the times within a turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=1, help="per request")
    parser.add_argument("--turns", type=int, default=9)
    asked = parser.parse_args()
    command = ("main.py", "serve", "--config", "configs/demo.yaml", "--port", str(PORT))
    server = subprocess.Popen([sys.executable, *command])
    try:
        wait_until_ready(server)
        ask(0, asked.images)
        ratios = [turn(asked.clients, asked.images) for _ in range(asked.turns)]
    finally:
        server.terminate()
        server.wait()
    print(
        f"one after another / at once, {asked.clients} clients x {asked.images} image(s),"
        f" {asked.turns} turns: median {median(ratios):.2f},"
        f" {min(ratios):.2f} to {max(ratios):.2f}"
    )


def turn(clients: int, images: int) -> float:
    """Return how much longer requests take one after another than at once."""
    began = time.perf_counter()
    for seed in range(clients):
        ask(seed, images)
    between = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda seed: ask(seed, images), range(clients)))
    return (between - began) / (time.perf_counter() - between)


def ask(seed: int, images: int) -> None:
    """Ask for images of one prompt."""
    body = {"prompt": "a red circle above a blue square", "n": images, "seed": seed}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{ADDRESS}/v1/images/generations", json.dumps(body).encode(), headers
    )
    with urllib.request.urlopen(request) as reply:
        assert len(json.load(reply)["data"]) == images


def wait_until_ready(server: "subprocess.Popen[bytes]") -> None:
    """Wait until the model is loaded."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{ADDRESS}/health").close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
