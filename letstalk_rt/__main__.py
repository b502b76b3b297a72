"""`python -m letstalk_rt`: the command `letstalk`."""

import sys

from letstalk_rt.cli.main import main

sys.exit(main())
