"""One process at a time, however it ends; and file systems that know no locks."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from bertfast.errors import BertfastError, ConfigError
from bertfast.storage.locks import LOCK_FILE, alone_in

HOLD = "import fcntl, sys, time; file = open(sys.argv[1], 'w'); file.write('process 7 on host'); file.flush(); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"


def enter(folder):
    with alone_in(folder):
        return True


def test_a_second_process_is_told_and_a_kill_releases(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)], stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(BertfastError, match=rf"^{tmp_path}: another run is at work there \(process 7 on host\); wait .* --model_dir"):
            enter(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    assert enter(tmp_path)


def test_a_child_that_outlives_its_run_holds_nothing(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from bertfast.storage import alone_in\n"
        "with alone_in(Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    os.kill(os.getpid(), 9)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], start_new_session=True)
    try:
        assert run.wait() == -9 and enter(tmp_path)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.parametrize("fault", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_stops_nobody(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(fault, "no locks here")))
    assert enter(tmp_path / "new" / "folder")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"model_dir = .*/file/run: cannot be written .* --model_dir"):
        enter(tmp_path / "file" / "run")
