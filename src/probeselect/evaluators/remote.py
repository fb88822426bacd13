"""An evaluator elsewhere: behind an HTTP address, or a process that reads and writes lines.

For models that need an environment of their own. The protocol is JSON, one object each way, format 1:

    request  {"format": 1, "prompts": ["a red car", ...], "images": ["<base64 of a PNG>", ...]}
    answer   {"rewards": [0.7, null, ...]}   one number for each image, null where there is none; or
             {"error": "what went wrong"}

`http://...` or `https://...` gets the request as the body of a POST and answers with status 200. `exec:COMMAND` is
started once, without a shell; it reads one request a line on stdin and writes one answer a line on stdout, and nothing
else there; stderr is its own. It should end when stdin does.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import math
import queue
import re
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor

from probeselect.core.errors import ProbeSelectError, UsageError
from probeselect.evaluators.base import check_pairs, checked_batch_size

FORMAT = 1
TIMEOUT_S = 120.0
MAX_ANSWER = 1 << 20  # bytes
GRACE_S = 1.0  # for a process to end by itself


class RemoteEvaluator:
    """Rewards what an address answers; it has no features, so a probe can learn its rewards but not distil it."""

    has_features = False

    def __init__(
        self,
        address: str,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Start the process, if it is one; an HTTP address is not asked before the first images.

        Args:
            address: "http://...", "https://..." or "exec:COMMAND".
            device: where rewards come back, in float32.
            batch_size: images of one request.
            timeout_s: seconds that one request may take.

        Raises:
            UsageError: an address that is no URL, or without a command, or a batch size below 1.
            ProbeSelectError: the command cannot be started.
        """
        self.name = address
        self.address, self.device, self.batch_size = address, device, checked_batch_size(batch_size)
        self._send: Callable[[bytes], bytes]
        if address.startswith("exec:"):
            self._send = _Process(address.removeprefix("exec:"), timeout_s)
        else:
            self._send = partial(_post, _checked_url(address), timeout_s=timeout_s)

    def features(self, images: Sequence[Image.Image]) -> NoReturn:
        """Raise ProbeSelectError: there are none."""
        raise ProbeSelectError(f"evaluator {self.address}: has no features, it can only reward finished images")

    def score(self, features: Tensor, prompts: Sequence[str]) -> NoReturn:
        """Raise ProbeSelectError: there are no features to score."""
        self.features([])

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return the rewards [N], in float32, of N images; NaN where the answer has null.

        Raises:
            UsageError: there are not as many prompts as images, or none.
            ProbeSelectError: no answer in time, or not one of the protocol.
        """
        check_pairs(images, prompts)
        rewards: list[float] = []
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            request = {"format": FORMAT, "prompts": list(prompts[rows]), "images": [*map(_png, images[rows])]}
            try:
                rewards += _rewards(self._send(json.dumps(request).encode()), len(prompts[rows]))
            except ProbeSelectError as error:
                raise ProbeSelectError(f"evaluator {self.address}: {error}") from error
        return torch.tensor(rewards, dtype=torch.float32, device=self.device)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _rewards(answer: bytes, count: int) -> list[float]:
    """Return the rewards of an answer. Raises ProbeSelectError if it is an error or not of the protocol."""
    try:
        content = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ProbeSelectError(f"answered {_short(answer)}, which is not JSON") from error
    if isinstance(content, dict) and "error" in content:
        raise ProbeSelectError(f"answered with the error {_short(str(content['error']).encode())}")
    rewards = content.get("rewards") if isinstance(content, dict) else None
    if not isinstance(rewards, list):
        raise ProbeSelectError(f'answered {_short(answer)}, must be {{"rewards": [...]}} or {{"error": "..."}}')
    if len(rewards) != count:
        raise ProbeSelectError(f"answered with {len(rewards)} rewards for {count} images, need one for each")
    return [_number(reward) for reward in rewards]


def _number(reward: Any) -> float:
    if reward is None:
        return math.nan
    if isinstance(reward, bool) or not isinstance(reward, int | float):
        raise ProbeSelectError(f"answered with the reward {_short(repr(reward).encode())}, must be a number or null")
    try:
        return float(reward) if math.isfinite(reward) else math.nan
    except OverflowError:  # an integer beyond all floats
        return math.nan


def _short(text: bytes) -> str:
    """Return the first characters of a text as one line in quotes."""
    line = " ".join(text[:400].decode(errors="replace").split())
    return repr(line[:100] + ("..." if len(line) > 100 else ""))


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        # Reading the port checks it; quoting is the caller's business.
        if parts.hostname and (parts.port is None or parts.port) and re.fullmatch(r"[!-~]+", url):
            return url
    except ValueError:
        pass
    raise UsageError(f"evaluator {url!r}: not a URL of host, port and path, write http://HOST:PORT/PATH")


def _post(url: str, body: bytes, timeout_s: float) -> bytes:
    """Return the body of the answer; a connection that breaks is tried once more."""
    try:
        return _post_once(url, body, timeout_s)
    except ConnectionError:
        pass
    try:
        return _post_once(url, body, timeout_s)
    except ConnectionError as error:
        raise ProbeSelectError(f"no connection, tried twice ({error})") from error


def _post_once(url: str, body: bytes, timeout_s: float) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    deadline = time.monotonic() + timeout_s
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return _read(response, deadline)
    except urllib.error.HTTPError as error:
        with error:
            raise ProbeSelectError(f"answered with status {error.code}: {_short(error.read(400))}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionError):
            raise error.reason from error
        reason = f"timed out after {timeout_s:g} s" if isinstance(error.reason, TimeoutError) else str(error.reason)
        raise ProbeSelectError(reason) from error
    except TimeoutError as error:
        raise ProbeSelectError(f"timed out after {timeout_s:g} s") from error
    except ConnectionError:
        raise
    except http.client.HTTPException as error:
        raise ProbeSelectError(f"does not answer in HTTP ({type(error).__name__})") from error
    except OSError as error:  # while reading, e.g. of TLS
        raise ProbeSelectError(str(error)) from error


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the whole answer. Raises TimeoutError once the deadline is over, however fast it trickles."""
    parts = bytearray()
    while part := response.read1(1 << 16):
        parts += part
        if len(parts) > MAX_ANSWER:
            raise ProbeSelectError(f"answered with more than {MAX_ANSWER} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(parts)


class _Process:
    """A process that answers a line with a line. One that failed is ended; the next request starts it anew."""

    def __init__(self, command: str, timeout_s: float) -> None:
        try:
            self.arguments = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"evaluator 'exec:{command}': {error}") from error
        if not self.arguments:
            raise UsageError("evaluator 'exec:': no command after it, write exec:COMMAND")
        self.timeout_s = timeout_s
        self._start()

    def _start(self) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(self.arguments, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            name = self.arguments[0]
            raise ProbeSelectError(f"evaluator exec:{name}: cannot be started ({error.strerror or error})") from error
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._last_words: list[bytes] = [b""]
        self._readers = [
            _thread(_put_lines, self._process.stdout, self._lines),
            _thread(_keep_last, self._process.stderr, self._last_words),
        ]
        self._end = weakref.finalize(self, _end, self._process)  # called at exit too

    def __call__(self, request: bytes) -> bytes:
        if not self._end.alive:
            self._start()
        _thread(_write, self._process.stdin, request + b"\n")  # a process that does not read must not hold us up
        try:
            line = self._lines.get(timeout=self.timeout_s)
        except queue.Empty:
            self._process.kill()
            self._end()
            raise ProbeSelectError(f"timed out after {self.timeout_s:g} s") from None
        if not line.endswith(b"\n"):
            code = self._ended()
            if len(line) > MAX_ANSWER:
                raise ProbeSelectError(f"answered with more than {MAX_ANSWER} bytes")
            words = _short(self._last_words[0]) if self._last_words[0] else "nothing"
            raise ProbeSelectError(f"the process ended with code {code}, its last words on stderr: {words}")
        return line

    def _ended(self) -> int:
        """Return the code of a process that has closed its stdout, once all its output is read."""
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._end()
        for reader in self._readers:
            reader.join(GRACE_S)
        return self._process.returncode


def _thread(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _write(stdin: IO[bytes], line: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or was ended: stdout tells
        stdin.write(line)
        stdin.flush()


def _put_lines(stdout: IO[bytes], lines: queue.Queue[bytes]) -> None:
    """Queue the lines; the last one, without a line end and often empty, says that there are no more."""
    line = b"\n"
    while line.endswith(b"\n"):
        line = stdout.readline(MAX_ANSWER + 1)
        lines.put(line)


def _keep_last(stderr: IO[bytes], last: list[bytes]) -> None:
    for line in stderr:
        last[0] = line.strip() or last[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a process end by itself, or kill it. Waits for whoever writes to it."""
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
