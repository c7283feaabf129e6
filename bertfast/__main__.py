"""launch.py for an installed bertfast, which has no launch.py at hand: `deepspeed --module bertfast --config ds_mnli.json`."""

import sys

from bertfast.cli import launch

if __name__ == "__main__":
    sys.exit(launch())
