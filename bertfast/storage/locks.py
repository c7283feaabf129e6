"""One process at a time in a folder: a lock that the system releases when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertfast.errors import BertfastError, ConfigError

LOCK_FILE = ".run.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made where it is not there. On a file system without locks, go on without.

    The lock is POSIX's and no child inherits it: a process that a killed run left behind keeps nobody out. The file stays; it says who was last.

    Raises:
        BertfastError: another process holds it.
        ConfigError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError(
            f"bertfast.run.model_dir = {folder}: cannot be written ({error.strerror or error}); name another folder with --model_dir"
        ) from None
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                holder = os.read(file, 1000).decode(errors="replace").strip()
                raise BertfastError(
                    f"{folder}: another run is at work there ({holder or 'it has not said which'}); wait until it has ended (one that is told "
                    "to stop still writes a checkpoint), or give another --model_dir"
                ) from None
        else:
            with contextlib.suppress(OSError):  # on a full disk; the lock holds, and whoever meets it learns less
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(file)
