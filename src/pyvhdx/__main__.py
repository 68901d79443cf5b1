"""``python -m pyvhdx`` is the command `pyvhdx`."""

import sys

from pyvhdx.cli import main

if __name__ == "__main__":
    sys.exit(main())
