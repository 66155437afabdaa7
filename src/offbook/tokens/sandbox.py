"""Limits for chat templates, which are programs that come with a model and are not trusted.

transformers renders them in jinja2's sandbox, which gives no access to Python objects, files or the
network. But a template could still run forever or use all memory. `within_limits` stops it after
some seconds or a gigabyte; in a program with several threads, a child process tries it first. A
single Python instruction, such as a huge power, cannot be stopped, so `check_source` refuses such
instructions before the template is run.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from offbook.errors import DataError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")

MAX_SOURCE = 2**20  # characters; the longest published templates have 30,000
SMALL = 1000  # the largest number, and the longest text, that something may be multiplied by
SECONDS = 10.0  # for one rendering; it usually takes less than a millisecond
MEMORY = 2**30  # bytes, in addition to what the process already uses

# String methods and filters whose result is as long as an argument says.
WIDTHS = ("batch", "center", "expandtabs", "ljust", "rjust", "round", "truncate", "zfill")
FORMATTERS = ("format", "format_map")
# These use regular expressions, which cannot be interrupted; or give another text each time, so
# that one rendering would not tell what another needs. So does lipsum.
REFUSED_FILTERS = ("striptags", "urlize", "wordwrap", "random")
WIDE_FORMAT = re.compile(r"%[-+ #0]*(\d{4,}|\*)|\{[^{}]*:[^{}]*(\d{4,}|\{)")
STATM = Path("/proc/self/statm")  # Linux; other systems do not enforce the limit


def check_source(source: object) -> None:
    """Refuse a template with an instruction that could run for very long.

    Raises:
        ValueError: naming the instruction and its line.
    """
    if not isinstance(source, str):
        raise ValueError("it is not text")
    if len(source) > MAX_SOURCE:
        raise ValueError(f"it has {len(source):,} characters")
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", _Generation])
    try:
        tree = environment.parse(source)
        for node in tree.find_all(nodes.Node):
            if reason := _refusal(node):
                raise ValueError(f"line {node.lineno} {reason}")
    except TemplateError as error:
        raise ValueError(f"it is not a jinja2 template: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Generation(Extension):
    """Parses the `{% generation %}` block, which transformers adds to jinja2."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refusal(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Pow):
        return "computes a power"
    if isinstance(node, nodes.Mul) and not (_is_small(node.left) or _is_small(node.right)):
        return "multiplies by something that is not a small constant"
    if isinstance(node, (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)):
        return "uses another file"
    if isinstance(node, nodes.Mod) and _is_wide(node.left):
        return "formats text to a large width"
    if isinstance(node, nodes.Filter) and node.name in REFUSED_FILTERS:
        return f"uses the filter {node.name}"
    if isinstance(node, nodes.Name) and node.name == "lipsum":
        return "uses lipsum"
    if isinstance(node, (nodes.Call, nodes.Filter)):
        return _refusal_of_call(node)
    return None


def _refusal_of_call(node: nodes.Call | nodes.Filter) -> str | None:
    if isinstance(node, nodes.Filter):
        name, subject = node.name, node.node
    elif isinstance(node.node, nodes.Getattr):
        name, subject = node.node.attr, node.node.node
    else:
        return None
    if name in FORMATTERS and _is_wide(subject):
        return "formats text to a large width"
    if name not in WIDTHS:
        return None
    arguments = [*node.args, *(keyword.value for keyword in node.kwargs)]
    if node.dyn_args or node.dyn_kwargs or not all(map(_is_small, arguments)):
        return f"calls {name} with something that is not a small constant"
    return None


def _is_small(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Tuple):
        return all(map(_is_small, node.items))
    if isinstance(node, nodes.Neg):
        node = node.node
    if not isinstance(node, nodes.Const):
        return False
    value = node.value
    return len(value) <= SMALL if isinstance(value, str) else abs(value or 0) <= SMALL


def _is_wide(node: nodes.Node | None) -> bool:
    return isinstance(node, nodes.Const) and bool(WIDE_FORMAT.search(str(node.value)))


class _TimeUpError(BaseException):
    """Raised in a thread that renders for too long; jinja2 does not catch it."""


class _Watchdog:
    """Raises an exception in the thread that renders, when it takes too long.

    There is one rendering at a time. A thread of the watchdog looks at it every second.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.watched: int | None = None  # the thread that renders
        self.renderings = 0  # how many have begun
        self.fired = False

    def begin(self) -> None:
        with self.lock:
            self.watched, self.fired = threading.get_ident(), False
            self.renderings += 1
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(
                    target=self._watch, name="offbook limits", daemon=True
                )
                self.thread.start()

    def end(self) -> None:
        """Raise nothing from now on, and cancel an exception that has not arrived yet."""
        with self.lock:
            watched, self.watched = self.watched, None
            if self.fired:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(watched or 0), None)

    def _watch(self) -> None:
        """Run until there has been no rendering for `SECONDS`."""
        seen, since = -1, time.monotonic()
        while True:
            time.sleep(SECONDS / 10)
            with self.lock:
                if self.renderings != seen:
                    seen, since = self.renderings, time.monotonic()
                elif time.monotonic() - since >= SECONDS:
                    if self.watched is not None and not self.fired:
                        self.fired = True
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(self.watched), ctypes.py_object(_TimeUpError)
                        )
                    elif self.watched is None:
                        self.thread = None
                        return


class _ExceededError(DataError):
    """A limit was exceeded: that of time, or else of memory."""

    def __init__(self, time: bool) -> None:
        self.time = time
        needs = f"needs more than {MEMORY / 2**30:g} GB of memory"
        reason = f"has not finished after {SECONDS:g} seconds" if time else needs
        super().__init__(f"the chat template {reason}")


# Threads that only wait, and need no memory: our own, and that of progress bars.
HARMLESS = ("offbook", "tqdm_monitor")
_watchdog = _Watchdog()
_rendering = threading.RLock()  # one at a time: the memory limit is that of the process
_depth = 0
_TIME, _MEMORY = 1, 2  # exit codes of a child; any other, such as that of a killed one, is memory


def within_limits(work: Callable[[], T]) -> T:
    """Call `work`, which renders a template, with a limit on time and memory.

    Calls may be nested: within a batch, each rendering has `SECONDS`, and the batch has `MEMORY`.
    The inner calls are cheap. `work` must be pure Python, because code in other languages may
    abort the process when it gets no memory; and its result and errors must be a function of what
    it is given, because a program with several threads calls it twice.

    Raises:
        DataError: when a limit is exceeded.
    """
    global _depth
    with _rendering:
        if _depth:
            _watchdog.renderings += 1
            return work()
        _depth = 1
        try:
            tried = _has_other_threads() and _try_in_child(work)
            return _limited(work, limit_memory=not tried)
        finally:
            _depth = 0


def _has_other_threads() -> bool:
    own = {threading.current_thread(), _watchdog.thread}
    return any(
        thread not in own and not thread.name.startswith(HARMLESS)
        for thread in threading.enumerate()
    )


def _try_in_child(work: Callable[[], T]) -> bool:
    """Call `work` in a child process, since a memory limit would hold for all threads of this one.

    Returns:
        Whether there was a child: Windows has no `fork`, and a system may refuse one.

    Raises:
        DataError: when a limit is exceeded there.
    """
    global _watchdog
    if not hasattr(os, "fork"):
        return False
    try:
        with warnings.catch_warnings():
            # Python warns of locks that other threads hold. This work takes none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        return False
    if not child:
        code = 0
        try:
            _watchdog = _Watchdog()
            _limited(work, limit_memory=True)
        except _ExceededError as error:
            code = _TIME if error.time else _MEMORY
        except BaseException:  # noqa: BLE001  # the parent's own call raises it
            code = 0
        finally:
            os._exit(code)
    try:
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    if status:
        raise _ExceededError(time=os.waitstatus_to_exitcode(status) == _TIME)
    return True


def _limited(work: Callable[[], T], *, limit_memory: bool) -> T:
    """Call `work`, and stop it when it exceeds a limit."""
    before = resource.getrlimit(resource.RLIMIT_AS) if resource and limit_memory else None
    # The watchdog's exception may arrive at any instruction from `begin` to `end`, also inside
    # these two. A context manager would have instructions of its own outside the `try`.
    try:
        try:
            _watchdog.begin()  # before the memory limit: its thread may need memory to start
            if before:
                _limit_memory(*before)
            return work()
        finally:
            _watchdog.end()
    except _TimeUpError:
        _watchdog.end()
        raise _ExceededError(time=True) from None
    except MemoryError:
        raise _ExceededError(time=False) from None
    finally:
        if before:
            resource.setrlimit(resource.RLIMIT_AS, before)


def _limit_memory(soft: int, hard: int) -> None:
    """Limit the address space of the process, where the system tells its present size."""
    if STATM.exists():
        pages = int(STATM.read_bytes().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        if soft == resource.RLIM_INFINITY or limit < soft:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
