"""A server in a process of its own: sockets, signals, draining, reloading; its model is mostly a stub."""

import json
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from command_line import COMMAND
from command_line import run as command
from http_process import CLIENT, HEAD, received, started, stub
from http_server import PNG, png


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    """What has begun is answered, even if its body is still arriving; new connections are refused."""
    with stub(tmp_path) as server:
        whole = server.send(HEAD % len(png()) + png())
        half = server.send(HEAD % len(png()) + png()[:100])
        idle = server.send(b"")
        server.in_flight(2)
        assert CLIENT.get(f"{server.url}/ready").status_code == 200
        server.process.send_signal(number)
        assert received(idle) == b""
        with pytest.raises(OSError):
            while True:
                server.send(b"").close()
        half.sendall(png()[100:])
        server.go()
        for connection in (whole, half):
            head, _, body = received(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["predictions"][0]["error"] is None
        status, err = server.end()
    assert status == 0
    assert err == "ending: requests that have begun are answered, for 30 s at most\n"


def test_draining_ends_in_time_though_the_model_hangs(tmp_path: Path) -> None:
    with stub(tmp_path, drain=0.2) as server:
        hanging = server.send(HEAD % len(png()) + png())
        server.in_flight(1)
        server.process.send_signal(signal.SIGTERM)
        received(hanging)
        assert server.end()[0] == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with stub(tmp_path) as server, server.send(HEAD % len(png()) + png()):
        server.in_flight(1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stderr is not None
        assert server.process.stderr.readline().startswith("ending:")
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == (143, "stopped at once\n")


def test_sighup_loads_the_model_anew(tmp_path: Path) -> None:
    with stub(tmp_path) as server:
        server.go()
        assert server.predict().json()["model"]["version"] == "1"
        err = server.process.stderr
        assert err is not None
        server.process.send_signal(signal.SIGHUP)
        assert err.readline() == "reloaded: stub 2 answers (before: 1)\n"
        assert server.predict().json()["model"]["version"] == "2"
        (tmp_path / "broken").touch()
        server.process.send_signal(signal.SIGHUP)
        line = f"the new model cannot be loaded, so stub 2 stays: {tmp_path}/best.safetensors is damaged\n"
        assert err.readline() == line
        assert server.predict().json()["model"]["version"] == "2"
        (tmp_path / "hang").touch()
        server.process.send_signal(signal.SIGHUP)
        assert server.predict().json()["model"]["version"] == "2"
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0  # a load that hangs does not keep it


def test_silent_and_broken_connections(tmp_path: Path) -> None:
    """They end, say why where that helps, and leave the server as it was."""
    with stub(tmp_path, idle=0.3, deadline=0.3, connections=30) as server:
        server.go()
        silent = [server.send(data) for data in (b"", b"GET", b"POST /predict HTTP/1.1\r\nX: ")]
        assert [received(each) for each in silent] == [b""] * 3
        for data in (b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET /\r\n\r\n"):
            answer = received(server.send(data))
            assert b"400" in answer.partition(b"\r\n")[0]
            assert answer.endswith(b'{"error": "the request is no valid HTTP"}')
        long = server.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
        assert b"400" in received(long).partition(b"\r\n")[0]
        slow = received(server.send(HEAD % 1000 + b"begin"))
        assert b"408" in slow.partition(b"\r\n")[0]
        chunked = HEAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") + b"zz\r\n"
        assert b"400" in received(server.send(chunked)).partition(b"\r\n")[0]
        refused = server.send(HEAD.replace(b"/predict", b"/nope") % 10**9 + bytes(100_000))
        assert b"404" in received(refused).partition(b"\r\n")[0]  # and the rest is not waited for
        many = [server.send(b"") for _ in range(40)]
        assert [each.recv(1) for each in many[35:]] == [b""] * 5
        assert [received(each) for each in many[:30]] == [b""] * 30
        assert server.predict().status_code == 200
        server.process.send_signal(signal.SIGTERM)
        status, err = server.end()
    assert (status, err.count("\n")) == (0, 1)


def test_the_real_model_over_the_command(run_folder: Path, tmp_path: Path) -> None:
    """With a key, reloaded from changed weights."""
    (tmp_path / "key").write_text("secret")
    words = [*COMMAND, "serve", str(run_folder), "--port=0", f"--api_key_file={tmp_path / 'key'}"]
    words.append("--no_explain")
    with started(words, tmp_path) as server:
        headers = {"Authorization": "Bearer secret"}
        assert server.predict().status_code == 401
        answer = CLIENT.post(f"{server.url}/predict", content=png(), headers=headers | PNG)
        assert answer.json()["model"]["architecture"] == "conformer_nano_patch8_64"
        again = CLIENT.post(f"{server.url}/reload", headers=headers)
        assert again.json()["model"] == answer.json()["model"]
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_mistakes_are_one_line(run_folder: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "empty").touch()
        for arguments, line in {
            (run_folder, "--port", port): f"--port {port}: Address already in use; give another --port",
            (run_folder, "--port", 70000): "--port 70000: must be from 1 to 65535",
            (run_folder, "--host", "no.such.host.invalid"): "--host no.such.host.invalid: no such address",
            (run_folder, "--host", "192.0.2.1", "--port", 0): "--host 192.0.2.1 --port 0: ",
            (tmp_path / "none",): f"{tmp_path / 'none'} does not exist",
            (tmp_path,): "is it a run folder?",
            ("http://127.0.0.1/model.onnx",): "URLs are not fetched",
            (run_folder, "--api_key_file", tmp_path / "none"): "none cannot be read: No such file",
            (run_folder, "--api_key_file", tmp_path / "empty"): "empty is empty; write a key",
            (run_folder, "--ssl_keyfile", tmp_path / "empty"): "needs --ssl_certfile too",
            (run_folder, "--port", 0, "--ssl_certfile", tmp_path / "empty"): "cannot be used: ",
            (run_folder, "--max_batch", 0): "--max_batch 0: must be more than 0",
            (run_folder, "--max_images", 99): "--max_images 99 is more than --max_queue 16",
            (run_folder, "--drain_seconds", -1): "--drain_seconds -1.0: must be 0 or more",
        }.items():
            done = command("serve", *arguments)
            assert done.status == 2, arguments
            *notes, last = done.err.splitlines()
            assert last.startswith("error: ") and line in last, done.err
            assert all("whoever reaches it" in each for each in notes) and len(notes) <= 1
            assert done.out == ""


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost", "-days", "2"]
    try:
        subprocess.run([*make, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    with stub(tmp_path, ssl_certfile=certificate, ssl_keyfile=key) as server:
        server.go()
        trusted = ssl.create_default_context(cafile=certificate)
        assert httpx.get(f"{server.url}/ready", verify=trusted).status_code == 200
