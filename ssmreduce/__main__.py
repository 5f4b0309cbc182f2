"""``python -m ssmreduce``: the command line."""

import sys

from ssmreduce.cli import main

if __name__ == "__main__":
    sys.exit(main())
