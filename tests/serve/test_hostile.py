"""The attack of benchmarks/hostile.py on a server in a process, in small; and that it would notice."""

import asyncio
from pathlib import Path

import pytest

import hostile
from http_client import Answer
from http_process import stub


def test_a_server_withstands_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "PACE", 0.001)
    with stub(tmp_path, deadline=2, idle=0.3) as server:
        server.go()
        report = asyncio.run(hostile.attack(server.port, 120, fuzz=False))
        server.process.terminate()
        assert server.end() == (0, "ending: requests that have begun are answered, for 30 s at most\n")
    assert (report.hangs, report.wrong) == (0, [])
    assert sum(report.statuses.values()) == sum(report.kinds.values()) == 120
    assert report.statuses.keys() >= {"200", "400", "404", "413", "422", "closed"}
    assert report.kinds.keys() == {*hostile.MAKERS, *hostile.CUT}
    assert len(report.memory_mb) == 10 and min(report.memory_mb) > 10


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (500, b'{"error": "x"}', "status 500"),
        (503, b'{"error": "x"}', "status 503"),
        (400, b"not JSON", "without an error"),
        (400, b'{"detail": "x"}', "without an error"),
        (404, b'{"error": "Traceback (most recent call last)"}', "Traceback"),
    ],
)
def test_wrong_answers_are_noticed(status: int, body: bytes, line: str) -> None:
    assert line in str(hostile.problem(Answer(status, b"", body)))
    assert hostile.problem(Answer(422, b"", b'{"error": "no image"}')) is None
