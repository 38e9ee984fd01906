"""`python -m levity` is the `levity` command."""

import sys

from levity.cli import main

sys.exit(main())
