"""`python -m natslab` is the command `natslab`."""

import sys

from natslab.cli import main

sys.exit(main())
