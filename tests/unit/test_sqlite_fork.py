"""Forks of a process that uses ``sqlite://``: what parent and child hold afterwards is seen by both, and by others."""

from __future__ import annotations

import gc
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from clusterports_sqlite import SqliteBackend, _file
from clusterports_sqlite._file import File

PRELUDE = """
import os, signal, sqlite3, sys, threading
from clusterports.abc import Ask, Holder, Request
from clusterports_sqlite import SqliteBackend, _file

path = sys.argv[1]
signal.alarm(20)

class User:
    def __init__(self, name, **arguments):
        self.name, self.count = name, 0
        self.backend = SqliteBackend(path, **arguments)
        self.open()
    def open(self):
        opened = self.backend.open("host:h", self.name, token="aa", ttl=30_000_000)
        self.holder = Holder(self.name, opened.lease, opened.incarnation)
    def take(self):
        self.count += 1
        request = Request(self.count, self.count)
        (port,) = self.backend.acquire("host:h", self.holder, request, [Ask("r", ((1, 100),))]).ports
        return port
    def give(self, port):
        self.backend.release("host:h", self.holder, [port])

def forked(job):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid

def say(*values):
    print(*values, flush=True)

def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def descriptors():
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return sum(link.startswith(path) for link in links)
"""


def run(path: Path, script: str) -> list[str]:
    """The lines that a process with this script prints."""
    options = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]  # there are threads, on purpose
    command = [sys.executable, *options, "-c", PRELUDE + script, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ("", 0) == (ran.stderr, ran.returncode), ran.stdout
    with closing(sqlite3.connect(path)) as db:
        assert [("ok",)] == db.execute("PRAGMA integrity_check").fetchall()
    return ran.stdout.splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def test_nothing_is_inherited(path: Path) -> None:
    """A child has nothing of its parent's open; with the same object both go on, and the child's end takes nothing."""
    script = """
parent = User("parent")
say(parent.take().number)
def child():
    say(descriptors())
    user = User("child")
    parent.name = "grandchild"
    parent.open()
    say(user.take().number, parent.take().number)
say(code(forked(child)))
say(parent.take().number, os.path.exists(path + "-wal"))
"""
    assert ["1", "0", "2 3", "0", "4 True"] == run(path, script)


def test_parent_closes(path: Path) -> None:
    """What a child works in is not taken from it when its parent, and whoever looks then, closes the file."""
    script = """
parent = User("parent")
parent.take()
ready, go = os.pipe(), os.pipe()
def child():
    user = User("child")
    say(user.take().number)
    os.write(ready[1], b".")
    os.read(go[0], 1)
    say(user.take().number)
pid = forked(child)
os.read(ready[0], 1)
parent.backend.close()
look = SqliteBackend(path)
look.read(["host:h"])
look.close()
say(os.path.exists(path + "-wal"))
os.write(go[1], b".")
say(code(pid))
say(User("stranger").take().number)
"""
    assert ["2", "True", "3", "0", "4"] == run(path, script)


def test_parent_ends(path: Path) -> None:
    """The same when the parent has ended without closing anything, as of a daemon."""
    script = """
parent = User("parent")
parent.give(parent.take())
ended = os.pipe()
if os.fork():
    os._exit(0)
os.close(ended[1])
user = User("daemon")
first = user.take()
os.read(ended[0], 1)
if not os.fork():
    SqliteBackend(path).read(["host:h"])
    sys.exit()
os.wait()
second = user.take()
stranger = os.pipe()
if not os.fork():
    os.write(stranger[1], b"%d" % User("stranger").take().number)
    sys.exit()
os.wait()
say(first.number, second.number, int(os.read(stranger[0], 9)))
"""
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "1 2 3\n" == process.stdout.read()


def test_other_thread_is_in_it(path: Path) -> None:
    """However busy other threads are, a child can use the file, and they go on."""
    script = """
users = [User("one"), User("two")]
stop = threading.Event()
done = [0, 0]
def work(number):
    while not stop.is_set():
        users[number].give(users[number].take())
        done[number] += 1
threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
for thread in threads:
    thread.start()
codes = set()
for number in range(20):
    codes.add(code(forked(lambda: User(f"child-{number}", timeout=10).take())))
stop.set()
for thread in threads:
    thread.join()
say(codes, min(done) > 0)
"""
    assert ["{0} True"] == run(path, script)


def test_other_thread_waits(path: Path) -> None:
    """A thread that waits for somebody else's lock does not hold up a fork."""
    script = """
user = User("one", timeout=15)
other = sqlite3.connect(path, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
waits, is_busy = threading.Event(), _file.is_busy
def told(error):
    waits.set()
    return is_busy(error)
_file.is_busy = told
taken = []
thread = threading.Thread(target=lambda: taken.append(user.take().number))
thread.start()
waits.wait()
pid = os.fork()
if not pid:
    os._exit(0)
say(code(pid), taken)
other.execute("ROLLBACK")
thread.join()
say(taken)
"""
    assert ["0 []", "[1]"] == run(path, script)


def test_handler_forks(path: Path) -> None:
    """A signal handler may fork in the middle of a step: the parent does it again, the child does not."""
    script = """
import time
user, codes = User("one", clock=lambda: time.monotonic_ns() // 1000), []
clock = user.backend.clock
def handle(*_):
    pid = os.fork()
    codes.append(code(pid) if pid else "child")
def interrupted():
    if not codes:
        signal.raise_signal(signal.SIGUSR1)
    return clock()
signal.signal(signal.SIGUSR1, handle)
user.backend.clock = interrupted
try:
    number = user.take().number
except Exception as error:
    say(type(error).__name__, descriptors())
    say(User("child").take().number)
    os._exit(7)
say(codes, number)
"""
    assert ["BackendError 0", "1", "[7] 2"] == run(path, script)


def test_handler_uses_it(path: Path) -> None:
    """A signal handler that uses the very object which the step under it uses is refused, and harms nothing."""
    script = """
user, said = User("one"), []
clock = user.backend.clock
def interrupted():
    if not said:
        said.append("")
        try:
            user.backend.read(["host:h"])
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return clock()
user.backend.clock = interrupted
say(user.take().number, said[1].replace(path, "x.db"))
"""
    assert ["1 BackendUnavailable: This thread was interrupted while it used 'x.db'"] == run(path, script)


def test_left_open(path: Path) -> None:
    """A file that nobody closed is closed when nobody has it any more, but not while another thread forks."""

    def opened() -> bool:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return path in [link.readlink() for link in links if link.is_symlink()]

    def use() -> SqliteBackend:
        backend = SqliteBackend(str(path))
        backend.open("host:h", "one", token="aa", ttl=30_000_000)
        assert opened()
        return backend

    backend = use()
    del backend
    gc.collect()
    assert not opened()

    backend = use()
    forks, ended = threading.Event(), threading.Event()

    def fork() -> None:
        with _file._forking:
            forks.set()
            ended.wait(10)

    thread = threading.Thread(target=fork)
    thread.start()
    try:
        assert forks.wait(10)
        del backend
        gc.collect()
        assert opened()
    finally:
        ended.set()
        thread.join()
    File._before_fork()
    try:
        assert not opened()
    finally:
        File._after_in_parent()
