"""The command that goes on with a run is the one that was typed, however the process was started."""

import os
import sys

import pytest

from bertfast.cli import resuming
from bertfast.cli.parser import parse_command, parse_launch
from bertfast.cli.resuming import resume_command

FLAGS = ["--config", "my config.json"]
LAUNCH = ["python", "-u", "launch.py", "--local_rank=0", *FLAGS]
NODE = ["python", "-m", "deepspeed.launcher.launch", "--world_info=e30=", "launch.py", *FLAGS]


@pytest.fixture
def descent(monkeypatch, tmp_path):
    """descent(own, parent, ...): this process's command line, and those of the processes that it descends from."""

    def set_lines(own, *ancestors):
        monkeypatch.setattr(sys, "orig_argv", own)
        monkeypatch.setattr(resuming, "_PROC", tmp_path)
        monkeypatch.setattr(os, "getppid", lambda: 100)
        for place, line in enumerate(ancestors, 100):
            (tmp_path / str(place)).mkdir()
            (tmp_path / str(place) / "cmdline").write_bytes("".join(f"{word}\0" for word in line).encode())
            (tmp_path / str(place) / "stat").write_text(f"{place} (a name) with) S {place + 1} 1 1")

    return set_lines


@pytest.mark.parametrize(
    "lines, ranks, expected",
    [
        pytest.param([["pytest"]], 1, "launch.py --config 'my config.json' --resume", id="called-from-python"),
        pytest.param([["python", "launch.py", *FLAGS], ["bash"]], 1, "python launch.py --config 'my config.json' --resume", id="alone"),
        pytest.param(
            [["python", "-m", "bertfast", *FLAGS], ["sh", "all.sh", *FLAGS]],
            1,
            "python -m bertfast --config 'my config.json' --resume",
            id="module",
        ),
        pytest.param(
            [LAUNCH, NODE, ["python", "-m", "deepspeed", "--num_gpus", "2", "launch.py", *FLAGS], ["bash"]],
            2,
            "python -m deepspeed --num_gpus 2 launch.py --config 'my config.json' --resume",
            id="deepspeed",
        ),
        pytest.param(
            [["python", "-u", "launch.py", *FLAGS], ["torchrun", "--nproc-per-node", "2", "launch.py", *FLAGS]],
            2,
            "torchrun --nproc-per-node 2 launch.py --config 'my config.json' --resume",
            id="torchrun",
        ),
        pytest.param([LAUNCH, NODE, ["sshd"]], 2, None, id="from-another-machine"),
    ],
)
def test_the_command_that_was_typed(descent, monkeypatch, lines, ranks, expected):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    descent(*lines)
    argv = lines[0][lines[0].index("launch.py") + 1 :] if "launch.py" in lines[0] else FLAGS
    assert resume_command(parse_launch(argv), argv, "launch.py") == expected


def test_a_script_that_the_shell_finds_is_called_by_its_name(descent, monkeypatch, tmp_path):
    script = tmp_path / "bin" / "bertfast"
    script.parent.mkdir()
    script.write_text("")
    script.chmod(0o755)
    argv = ["train", "--config", "c.json"]
    descent(["/usr/bin/python3", str(script), *argv])
    assert resume_command(parse_command(argv), argv, "bertfast") == f"{script} train --config c.json --resume"
    monkeypatch.setenv("PATH", str(script.parent))
    assert resume_command(parse_command(argv), argv, "bertfast") == "bertfast train --config c.json --resume"


@pytest.mark.parametrize(
    "typed, expected",
    [
        pytest.param("--resume", "--resume", id="resumed-before"),
        pytest.param("--checkpoint_path my/bert", "--set 'bertfast.model.checkpoint=\"my/bert\"' --resume", id="the-weights-to-start-from"),
        pytest.param(
            "--checkpoint_path=123 --model_dir r", "--model_dir r --set 'bertfast.model.checkpoint=\"123\"' --resume", id="with-="
        ),
        pytest.param("--resume --checkpoint_path r/checkpoints/step-7", "--resume", id="not-led-back-a-second-time"),
    ],
)
def test_checkpoint_path_means_another_thing_beside_resume(descent, typed, expected):
    descent(["pytest"])
    argv = ["train", "--config", "c.json", *typed.split()]
    assert resume_command(parse_command(argv), argv, "bertfast") == f"bertfast train --config c.json {expected}"
