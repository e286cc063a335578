"""``python -m stem_torchrec`` is ``stem-torchrec``."""

import sys

from stem_torchrec.cli import main

sys.exit(main())
