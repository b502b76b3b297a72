"""Run the command `letstalk` with `python -m letstalk_rt`."""

import sys

from letstalk_rt.cli.main import main

sys.exit(main())
