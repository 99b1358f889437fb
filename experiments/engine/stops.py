"""Requests to stop: Ctrl-C and SIGTERM, which a training run answers when it has saved."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

STATUS = 130  # the exit status of a program that Ctrl-C has stopped


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second one ends the process at once.

    A thread waits for the signals: Python calls a handler in the main thread, and only when
    the compiled program that it waits for has ended. Where this is not the main thread, and
    for signals that the process ignores, nothing changes.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in handlers:
        signal.signal(number, lambda *_: None)  # the thread acts
    watcher = threading.Thread(target=_watch, args=(reader, set(handlers), asked))
    watcher.daemon = True
    watcher.start()
    try:
        yield asked
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        writer.close()  # ends the thread
        watcher.join()
        reader.close()


def _watch(reader: socket.socket, numbers: set[int], asked: threading.Event) -> None:
    """Reads the numbers of signals until the other end is closed."""
    while received := reader.recv(1):
        if received[0] not in numbers:
            continue
        if asked.is_set():
            os._exit(STATUS)
        asked.set()
        words = "stopping when the steps of this call are saved; once more stops at once"
        print(f"\n{words}", file=sys.stderr, flush=True)
