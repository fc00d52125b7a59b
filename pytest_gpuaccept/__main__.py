"""`python -m pytest_gpuaccept` is the `gpuaccept` command."""

import sys

from pytest_gpuaccept.cli import main

sys.exit(main())
