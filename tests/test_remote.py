"""Evaluators elsewhere, over a real local HTTP server and real processes, with everything that can go wrong."""

import base64
import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.base import has_features, judge
from probeselect.evaluators.remote import RemoteEvaluator
from probeselect.evaluators.table import load_evaluator, parse_evaluator

IMAGES = [Image.new("RGB", (4 + i, 3), (50 * i, 0, 0)) for i in range(3)]
PROMPTS = ["a", "bb", "ccc ä"]


def rewards_of(request: dict[str, Any]) -> list[float]:
    """What both fake judges answer: red + width + length of the prompt."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in request["images"]]
    pairs = zip(pictures, request["prompts"], strict=True)
    return [image.getpixel((0, 0))[0] + image.width + len(prompt) for image, prompt in pairs]


WANT = torch.tensor([4.0 + 1, 50 + 5 + 2, 100 + 6 + 5])


class Server(ThreadingHTTPServer):
    """Answers each request with `self.answer(handler, request)`."""

    daemon_threads = True
    answer: Callable[[Any, dict[str, Any]], None]
    requests: list[dict[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/score"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.answer(self, request)

    def log_message(self, *_: Any) -> None:
        pass


def reply(handler: Any, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    server.answer = lambda handler, request: reply(handler, json.dumps({"rewards": rewards_of(request)}).encode())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def process(tmp_path: Path, body: str, before: str = "") -> str:
    """Return exec:COMMAND of a script that runs `body` for each request."""
    script = tmp_path / "a judge.py"
    lines = body.replace("\n", "\n    ")
    script.write_text(
        f"import json, os, sys, time\n{before}\nfor line in sys.stdin:\n    r = json.loads(line)\n    {lines}\n"
    )
    return f"exec:{sys.executable} '{script}'"


ANSWER = 'print(json.dumps({"rewards": [float(len(p)) for p in r["prompts"]]}), flush=True)'


def failure(evaluator: Any) -> str:
    with pytest.raises(ProbeSelectError) as caught:
        evaluator(IMAGES, PROMPTS)
    message = str(caught.value)
    assert message.startswith(f"evaluator {evaluator.address}: ") and "\n" not in message
    return message


# --- HTTP ---


def test_http_rewards(server: Server) -> None:
    evaluator = load_evaluator(server.url)
    assert evaluator.name == server.url
    got = evaluator(IMAGES, PROMPTS)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, WANT)
    (request,) = server.requests
    assert request["format"] == 1 and request["prompts"] == PROMPTS and set(request) == {"format", "prompts", "images"}


def test_http_in_batches_and_by_name(server: Server) -> None:
    name, address = parse_evaluator(f"judge={server.url}?a=b")
    evaluator = load_evaluator(name, address, batch_size=2, dtype=torch.bfloat16)
    assert evaluator.name == "judge"
    torch.testing.assert_close(evaluator(IMAGES, PROMPTS), WANT)
    assert [len(request["images"]) for request in server.requests] == [2, 1]


def test_http_images_of_any_mode(server: Server) -> None:
    modes = ("L", "RGBA", "P", "1")
    assert load_evaluator(server.url)([IMAGES[0].convert(mode) for mode in modes], ["a"] * 4).tolist() == [5.0] * 4


def test_null_is_nan_and_so_is_what_is_not_finite(server: Server) -> None:
    body = b'{"rewards": [null, NaN, 1' + b"0" * 400 + b"]}"
    server.answer = lambda handler, _: reply(handler, body)
    assert load_evaluator(server.url)(IMAGES, PROMPTS).isnan().all()
    server.answer = lambda handler, _: reply(handler, b'{"rewards": [1, null, 2.5]}')
    assert load_evaluator(server.url)(IMAGES, PROMPTS)[[0, 2]].tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"no such\n page", 404, "answered with status 404: 'no such page'"),
        (b"", 500, "answered with status 500"),
        (b"<html>", 200, "answered '<html>', which is not JSON"),
        (b"\xff" * 300, 200, "which is not JSON"),
        (b"[" * 100_000, 200, "which is not JSON"),
        (b"", 200, "answered '', which is not JSON"),
        (b"[1, 2, 3]", 200, "must be"),
        (b'{"reward": [1, 2, 3]}', 200, "must be"),
        (b'{"rewards": 3}', 200, "must be"),
        (b'{"rewards": [1, 2]}', 200, "answered with 2 rewards for 3 images, need one for each"),
        (b'{"rewards": [1, "2", 3]}', 200, "answered with the reward \"'2'\", must be a number or null"),
        (b'{"rewards": [1, true, 3]}', 200, "answered with the reward 'True'"),
        (b'{"error": "out of\\n memory"}', 200, "answered with the error 'out of memory'"),
        (b" " * (2 << 20), 200, "answered with more than 1048576 bytes"),
    ],
)
def test_http_faults_are_one_line(body: bytes, status: int, says: str, server: Server) -> None:
    server.answer = lambda handler, _: reply(handler, body, status)
    assert says in failure(load_evaluator(server.url))
    assert len(server.requests) == 1


def test_http_timeouts(server: Server) -> None:
    done = threading.Event()
    server.answer = lambda *_: done.wait(5)
    start = time.monotonic()
    assert failure(RemoteEvaluator(server.url, timeout_s=0.3)).endswith("timed out after 0.3 s")

    def trickle(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not done.wait(0.05):
            handler.wfile.write(b" ")

    server.answer = trickle
    assert failure(RemoteEvaluator(server.url, timeout_s=0.3)).endswith("timed out after 0.3 s")
    assert time.monotonic() - start < 3
    done.set()


def test_a_connection_that_breaks_is_tried_once_more(server: Server) -> None:
    def break_off(handler: Any, request: dict[str, Any]) -> None:
        if len(server.requests) > 1:
            reply(handler, json.dumps({"rewards": rewards_of(request)}).encode())

    server.answer = break_off
    torch.testing.assert_close(load_evaluator(server.url)(IMAGES, PROMPTS), WANT)
    server.answer = lambda *_: None
    assert "no connection, tried twice" in failure(load_evaluator(server.url))
    assert len(server.requests) == 4

    def end_early(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")

    server.answer = end_early
    assert "answered '{', which is not JSON" in failure(load_evaluator(server.url))


def test_nobody_listens(server: Server) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    assert "no connection, tried twice" in failure(load_evaluator(url))


def test_what_does_not_speak_http(server: Server) -> None:
    server.answer = lambda handler, _: handler.wfile.write(b"hello\r\n\r\n")
    assert "does not answer in HTTP (BadStatusLine)" in failure(load_evaluator(server.url))


def test_there_are_no_features(server: Server) -> None:
    evaluator = load_evaluator(server.url)
    assert not has_features(evaluator)
    for ask in (lambda: evaluator.features(IMAGES), lambda: evaluator.score(torch.zeros(3), PROMPTS)):
        with pytest.raises(ProbeSelectError, match="has no features, it can only reward finished images"):
            ask()
    features, rewards = judge(evaluator, IMAGES, PROMPTS)
    assert features is None
    torch.testing.assert_close(rewards, WANT)


def test_bad_use(server: Server) -> None:
    for url in ("http:///score", "http://host:port/", "http://[host/", "http://host/a b", "http://host:0/", "https://"):
        with pytest.raises(UsageError, match="not a URL of host, port and path, write http://HOST:PORT/PATH"):
            load_evaluator(url)
    with pytest.raises(UsageError, match="batch_size: got 0"):
        load_evaluator(server.url, batch_size=0)
    with pytest.raises(UsageError, match="got 3 for 2 images"):
        load_evaluator(server.url)(IMAGES[:2], PROMPTS)
    with pytest.raises(UsageError, match="no command after it"):
        load_evaluator("exec: ")
    with pytest.raises(UsageError, match="No closing quotation"):
        load_evaluator("exec:a 'b")


# --- processes ---


def test_a_process_rewards_and_is_started_once(tmp_path: Path) -> None:
    body = 'print(json.dumps({"rewards": [os.getpid() + len(p) for p in r["prompts"]]}), flush=True)'
    evaluator: Any = load_evaluator("judge", process(tmp_path, body), batch_size=2)
    assert evaluator.name == "judge" and not has_features(evaluator)
    pid = evaluator._send._process.pid
    for _ in range(2):
        assert evaluator(IMAGES, PROMPTS).tolist() == [float(torch.tensor(float(pid + n))) for n in (1, 2, 5)]


def test_the_process_sees_the_request(tmp_path: Path) -> None:
    body = f'open({str(tmp_path / "seen")!r}, "w").write(line)\n{ANSWER}'
    load_evaluator(process(tmp_path, body))(IMAGES, PROMPTS)
    request = json.loads((tmp_path / "seen").read_text())
    assert request["format"] == 1 and request["prompts"] == PROMPTS
    assert rewards_of(request) == WANT.tolist()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('print("hello", flush=True)', "answered 'hello', which is not JSON"),
        ("print(json.dumps({'rewards': [1]}), flush=True)", "answered with 1 rewards for 3 images"),
        ("print(json.dumps({'error': 'no memory'}), flush=True)", "answered with the error 'no memory'"),
        (
            "print('one', file=sys.stderr)\nprint('the end', file=sys.stderr)\nsys.exit(3)",
            "the process ended with code 3, its last words on stderr: 'the end'",
        ),
        ("sys.exit(0)", "the process ended with code 0, its last words on stderr: nothing"),
        ("os.kill(os.getpid(), 9)", "the process ended with code -9"),
        ("print('{', end='', flush=True)\nsys.exit(0)", "the process ended with code 0"),
        ("print('x' * (2 << 20), flush=True)", "answered with more than 1048576 bytes"),
    ],
)
def test_faults_of_a_process_are_one_line(body: str, says: str, tmp_path: Path) -> None:
    assert says in failure(load_evaluator(process(tmp_path, body)))


def test_a_process_that_failed_is_started_anew(tmp_path: Path) -> None:
    mark = repr(str(tmp_path / "mark"))
    body = f'if not os.path.exists({mark}):\n    open({mark}, "w")\n    sys.exit(1)\n{ANSWER}'
    evaluator = load_evaluator(process(tmp_path, body))
    assert "ended with code 1" in failure(evaluator)
    assert evaluator(IMAGES, PROMPTS).tolist() == [1.0, 2.0, 5.0]


@pytest.mark.parametrize("before", ["", "time.sleep(60)"])
def test_a_process_that_takes_too_long_is_ended(before: str, tmp_path: Path) -> None:
    """With `before` it never reads, while the request is larger than a pipe."""
    evaluator: Any = RemoteEvaluator(process(tmp_path, "time.sleep(60)", before), timeout_s=0.3)
    running = evaluator._send._process
    noise = Image.frombytes("RGB", (512, 512), os.urandom(3 * 512 * 512))
    start = time.monotonic()
    with pytest.raises(ProbeSelectError, match=r"timed out after 0\.3 s"):
        evaluator([noise], ["a"])
    assert time.monotonic() - start < 3
    assert running.returncode == -9


def test_a_chatty_stderr_does_not_hold_a_process_up(tmp_path: Path) -> None:
    evaluator = load_evaluator(process(tmp_path, f"print('x' * (1 << 18), file=sys.stderr)\n{ANSWER}"))
    assert evaluator(IMAGES, PROMPTS).tolist() == [1.0, 2.0, 5.0]


def test_no_such_command() -> None:
    with pytest.raises(ProbeSelectError, match=r"^evaluator exec:no-such-command: cannot be started \(No such file"):
        load_evaluator("judge", "exec:no-such-command --x")


def test_the_process_ends_with_its_evaluator_and_with_ours(tmp_path: Path) -> None:
    command = process(tmp_path, ANSWER)
    evaluator: Any = load_evaluator(command)
    running = evaluator._send._process
    del evaluator
    gc.collect()
    assert running.returncode == 0  # its stdin ended
    code = f"import sys; sys.path[:] = {sys.path}\nfrom probeselect.evaluators.table import load_evaluator\n"
    code += f"e = load_evaluator({command!r}); print(e._send._process.pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
