"""The command line. Progress goes to stderr, results to stdout; an error is one line and an exit code."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from probeselect.commands.registry import commands
from probeselect.core.errors import ProbeSelectError, UsageError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


@app.callback()
def about() -> None:
    """Start many candidates of a picture, score them early, finish only the promising ones."""


for each in commands("probeselect.commands"):
    app.command(rich_help_panel=each.panel)(each.function)


def _on_terminate(*_: object) -> None:
    raise SystemExit(143)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        with _notes_on_stderr():
            code = app(standalone_mode=False)
        if code:  # of an Exit, such as 130 after Ctrl-C
            sys.exit(code)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except UsageError as error:
        sys.exit(_say(error, 2))
    except ProbeSelectError as error:
        sys.exit(_say(error, 1))
    except OSError as error:
        sys.exit(_say(error, 1))
    except MemoryError as error:
        sys.exit(_say(f"out of memory ({error})", 1))
    except Exception as error:
        if "can't allocate memory" in str(error):  # a RuntimeError of torch's
            sys.exit(_say(f"out of memory ({error})", 1))
        if not hasattr(error, "exit_code"):
            raise
        sys.exit(
            _say(error.format_message() if hasattr(error, "format_message") else error, 2)
        )  # click's own usage errors


class _Notes(logging.Handler):
    """Prints what the library warns of, a line each and each line once, between the steps of a progress bar."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = _line(record.getMessage())
        if line in self.said:
            return
        self.said.add(line)
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)


@contextmanager
def _notes_on_stderr() -> Iterator[None]:
    handler, log = _Notes(), logging.getLogger("probeselect")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _line(text: object) -> str:
    """One printable line, whatever the text holds."""
    joined = " ".join(str(text).split())
    return f"probeselect: {''.join(c if c.isprintable() else repr(c)[1:-1] for c in joined)}"


def _say(error: object, code: int) -> int:
    print(_line(error), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
