"""What `deepspeed` starts on every rank: `deepspeed launch.py --config ds_mnli.json`. Its arguments are for bertfast.cli."""

import sys

from bertfast.cli import launch

if __name__ == "__main__":
    sys.exit(launch())
