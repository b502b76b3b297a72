"""`python -m letstalk_server`."""

import sys

from letstalk_server.main import main

sys.exit(main())
