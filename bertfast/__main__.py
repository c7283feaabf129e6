"""`python -m bertfast COMMAND ...` is the `bertfast` command; without a command it is launch.py, which an installed bertfast has not at hand:
`deepspeed --module bertfast --config ds_mnli.json`."""

from __future__ import annotations

import sys

from bertfast.cli import launch, main, names_command

if __name__ == "__main__":
    sys.exit(main() if names_command(sys.argv[1:]) else launch())
