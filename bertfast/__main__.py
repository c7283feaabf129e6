"""`python -m bertfast COMMAND ...` is the `bertfast` command; without a command it is launch.py, which an installed bertfast has not at hand:
`deepspeed --module bertfast --config ds_mnli.json`."""

import sys

from bertfast.arguments import names_command
from bertfast.cli import launch, main

if __name__ == "__main__":
    sys.exit(main() if names_command(sys.argv[1:]) else launch())
