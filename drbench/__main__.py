"""`python -m drbench` is the command line."""

import sys

from drbench.cli import main

sys.exit(main())
