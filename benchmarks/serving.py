"""Load a server on this machine: throughput, latency under load, what HTTP costs, and hostile requests.

Throughput is that of a closed loop of connections, with batches and with ``--max_batch 1``, in turns. The
loads of the latencies come at random times (Poisson), whatever the server does, at 50, 100 and 200 % of the
throughput with batches; each latency counts from the time at which the request was to come. What HTTP costs
is the difference between the medians of one request after the other and of the same calls of `Predictor`, in
turns. Hostile requests are those of `hostile.py` and of schemathesis.

    python benchmarks/serving.py runs/photos/model.onnx
    python benchmarks/serving.py runs/photos/model.onnx --parts throughput latency --json serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from conformer_vision import Predictor
from conformer_vision.serve.limits import Limits
from hostile import Report, attack
from http_client import Client, request, server

PARTS = ("throughput", "latency", "overhead", "hostile")
LOADS = (0.5, 1.0, 2.0)
ROUNDS = 3
_BLOCK = 25
"""Requests, or calls, in a row; the first ones warm up."""


@dataclass
class Latency:
    """One load: what was accepted and how long it took."""

    load: float
    """Share of the throughput with batches."""
    rate: float
    """Requests per second."""
    accepted: int
    refused: int
    """With 503, at once."""
    closed: int
    """Connections beyond those that the server takes."""
    p50_ms: float
    p99_ms: float
    refused_p99_ms: float
    """Of the refusals."""


@dataclass
class Results:
    """Everything that was timed."""

    model: str
    images_per_second: dict[str, float] = field(default_factory=dict)
    """By the form of serving, and of `Predictor` by batch size."""
    latencies: list[Latency] = field(default_factory=list)
    medians_ms: dict[str, float] = field(default_factory=dict)
    hostile: dict[str, Any] = field(default_factory=dict)


def photo(edge: int = 96) -> bytes:
    """Return a JPEG photo."""
    from skimage import data

    buffer = BytesIO()
    Image.fromarray(data.chelsea()).resize((edge, edge)).save(buffer, "jpeg")
    return buffer.getvalue()


async def closed_loop(client: Client, data: bytes, *, connections: int, seconds: float) -> float:
    """Send requests over so many connections, one after the other on each; return answers per second."""
    end, answered = time.perf_counter() + seconds, 0

    async def one() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            answer = await client.send(data)
            answered += answer.status == 200

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    return answered / (time.perf_counter() - began)


async def open_loop(client: Client, data: bytes, *, rate: float, load: float, seconds: float) -> Latency:
    """Send requests at random times, whatever the server does."""
    rng, took, refused, closed = random.Random(0), list[float](), list[float](), list[float]()
    others: Counter[int] = Counter()

    async def one(due: float) -> None:
        try:
            answer = await client.send(data)
        except ConnectionError:  # more connections than the server takes
            closed.append(due)
            return
        elapsed = 1000 * (time.perf_counter() - due)
        if answer.status in (200, 503):
            (took if answer.status == 200 else refused).append(elapsed)
        else:
            others[answer.status] += 1

    tasks, due = [], time.perf_counter()
    end = due + seconds
    while (due := due + rng.expovariate(rate)) < end:
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    if others:
        raise SystemExit(f"at {load:.0%}: answers with the statuses {dict(others)}")
    shares = np.percentile(took, [50, 99]).tolist()
    return Latency(
        load,
        rate,
        accepted=len(took),
        refused=len(refused),
        closed=len(closed),
        p50_ms=shares[0],
        p99_ms=shares[1],
        refused_p99_ms=float(np.percentile(refused, 99)) if refused else 0.0,
    )


def bare(predictor: Predictor, data: bytes, batch: int, seconds: float) -> float:
    """Return the images per second of `Predictor` alone, without decoding."""
    prepared = [predictor.read(data, name="photo")] * batch
    predictor.answer(prepared)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        predictor.answer(prepared)
        done += batch
    return done / (time.perf_counter() - began)


async def throughput(
    results: Results, arguments: argparse.Namespace, data: bytes, ports: dict[str, int]
) -> None:
    """Fill in the images per second."""
    clients = {name: Client(port) for name, port in ports.items()}
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for client in clients.values():
        await closed_loop(client, data, connections=arguments.connections, seconds=1)
    for _ in range(ROUNDS):
        for name, client in clients.items():
            found = await closed_loop(
                client, data, connections=arguments.connections, seconds=arguments.seconds / ROUNDS
            )
            rates[name].append(found)
    for name, found in rates.items():
        results.images_per_second[name] = statistics.median(found)
        await clients[name].close()


async def latency(results: Results, arguments: argparse.Namespace, data: bytes, port: int) -> None:
    """Fill in the latencies."""
    client = Client(port)
    capacity = results.images_per_second["batches"]
    for load in LOADS:
        found = await open_loop(client, data, rate=load * capacity, load=load, seconds=arguments.seconds)
        results.latencies.append(found)
        await client.close()


async def overhead(results: Results, predictor: Predictor, data: bytes, port: int, requests: int) -> None:
    """Fill in the medians of one request after the other, and of the same calls without HTTP."""
    client, sent = Client(port), request("/predict", data)
    over_http, without = list[float](), list[float]()
    for _ in range(max(requests // _BLOCK, 1) + 1):
        for _ in range(_BLOCK):
            began = time.perf_counter()
            await client.send(sent)
            over_http.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(0.05)  # threads of a runtime go on spinning for a while
        for _ in range(_BLOCK):
            began = time.perf_counter()
            predictor.answer([predictor.read(data, name="photo")])
            without.append(1000 * (time.perf_counter() - began))
        await asyncio.sleep(0.05)
    await client.close()
    results.medians_ms = {
        "http": statistics.median(over_http[_BLOCK:]),
        "predictor": statistics.median(without[_BLOCK:]),
    }


def show(results: Results) -> None:
    """Print the tables, and what the targets say of them."""
    rates = results.images_per_second
    if rates:
        print(f"\n{'images per second':<34}")
        for name, rate in rates.items():
            print(f"  {name:<30} {rate:9.1f}")
        print(f"  serving with batches / without: {rates['batches'] / rates['one by one']:.2f} (target: 2)")
    if results.latencies:
        print(f"\n{'load':>6} {'per s':>8} {'accepted':>9} {'503':>7} {'closed':>7}", end=" ")
        print(f"{'p50 ms':>8} {'p99 ms':>8} {'p99 of 503':>11}")
        for each in results.latencies:
            print(
                f"{each.load:6.0%} {each.rate:8.1f} {each.accepted:9,} {each.refused:7,} "
                f"{each.closed:7,} {each.p50_ms:8.1f} {each.p99_ms:8.1f} {each.refused_p99_ms:11.1f}"
            )
        low, high = results.latencies[0], results.latencies[-1]
        print(f"p99 at 200 % / at 50 %: {high.p99_ms / low.p99_ms:.2f} (target: at most 2)")
    if results.medians_ms:
        http, without = results.medians_ms["http"], results.medians_ms["predictor"]
        print(f"\nmedian of a request: {http:.2f} ms; of Predictor alone: {without:.2f} ms;", end=" ")
        print(f"HTTP adds {http - without:.2f} ms (target: at most 3)")
    if results.hostile:
        print()
        print(Report(**results.hostile).text())


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="the bundled weights by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=30, help="of each throughput and each load")
    parser.add_argument("--connections", type=int, default=16, help="of the closed loop")
    parser.add_argument("--requests", type=int, default=1000, help="of the overhead")
    parser.add_argument("--hostile", type=int, default=10_000, help="hostile requests")
    parser.add_argument("--max_batch", type=int, default=Limits.max_batch)
    parser.add_argument("--edge", type=int, default=96, help="pixels of the photo")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = Results(arguments.model or "bundled weights")
    photo_data = photo(arguments.edge)
    sent, parts = request("/predict", photo_data), set(arguments.parts)
    with ExitStack() as stack:
        if parts & {"throughput", "latency", "overhead"}:
            forms = {"batches": arguments.max_batch, "one by one": 1}
            ports = {
                name: stack.enter_context(server(arguments.model, f"--max_batch={batch}", "--no_explain"))
                for name, batch in forms.items()
            }
            predictor = Predictor(arguments.model)
            if parts & {"throughput", "latency"}:
                asyncio.run(throughput(results, arguments, sent, ports))
                for batch in (1, arguments.max_batch):
                    rate = bare(predictor, photo_data, batch, min(arguments.seconds, 5))
                    results.images_per_second[f"Predictor, batches of {batch}"] = rate
            if "latency" in parts:
                asyncio.run(latency(results, arguments, sent, ports["batches"]))
            if "overhead" in parts:
                asyncio.run(overhead(results, predictor, photo_data, ports["batches"], arguments.requests))
    if "hostile" in parts:
        with server(arguments.model, "--deadline_seconds=5", "--max_megapixels=20") as port:
            results.hostile = asdict(asyncio.run(attack(port, arguments.hostile)))
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(results), indent=2) + "\n")


if __name__ == "__main__":
    main()
