"""Two ranks that stay: started once by DeepSpeed's launcher, they take one run after the other, and are spared its start and all imports.

Run as a script, this is what each rank does: `deepspeed --num_gpus 2 tests/support/rank_pool.py FOLDER OWNER`. Requests come as files in FOLDER, one for
all ranks, and each rank answers with one of its own. `RankPool` is the other side.
"""

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

RANKS = 2
_POLL_SECONDS = 0.01
_RUN_SECONDS = 300.0


class RankPool:
    """The ranks, from the side of the tests. Ends with `close`."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder, self._number = folder, 0
        port = str(random.SystemRandom().randint(20_000, 60_000))
        command = [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus",
            str(RANKS),
            "--master_port",
            port,
            __file__,
            str(folder),
            str(os.getpid()),
        ]
        with open(folder / "launcher.log", "wb") as log:
            self._launcher = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, folder: Path, arguments: list[str]) -> tuple[list[int], str]:
        """The exit code of each rank's launch.py with these arguments in this folder, and what the ranks said, one after the other."""
        _write(self._folder / f"request-{self._number}.json", {"folder": str(folder), "arguments": arguments})
        answers = [self._folder / f"answer-{self._number}-{rank}.json" for rank in range(RANKS)]
        self._number += 1
        given_up = time.monotonic() + _RUN_SECONDS
        while not all(answer.exists() for answer in answers):
            if self._launcher.poll() is not None or time.monotonic() > given_up:
                self._launcher.kill()
                raise RuntimeError(f"the ranks have gone, or are stuck: {(self._folder / 'launcher.log').read_text()[-3000:]}")
            time.sleep(_POLL_SECONDS)
        told = [json.loads(answer.read_text()) for answer in answers]
        return [answer["code"] for answer in told], "".join(answer["said"] for answer in told)

    def close(self) -> None:
        """Let the ranks end."""
        _write(self._folder / f"request-{self._number}.json", None)
        self._launcher.wait(timeout=60)
        shutil.rmtree(self._folder)


def _write(file: Path, content: object) -> None:
    beside = file.with_suffix(".writing")
    beside.write_text(json.dumps(content))
    beside.rename(file)


def _serve(folder: Path, owner: int) -> None:
    from bertfast.cli import launch

    number = 0
    while True:
        request = folder / f"request-{number}.json"
        while not request.exists():
            time.sleep(_POLL_SECONDS)
            os.kill(owner, 0)  # ends these ranks where the tests have gone without a word
        asked = json.loads(request.read_text())
        if asked is None:
            return
        said = io.StringIO()
        with contextlib.chdir(asked["folder"]), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = launch(asked["arguments"])
        _write(folder / f"answer-{number}-{os.environ['RANK']}.json", {"code": code, "said": said.getvalue()})
        number += 1


if __name__ == "__main__":
    _serve(Path(sys.argv[-2]), int(sys.argv[-1]))
