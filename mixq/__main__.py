"""`python -m mixq`, as torchrun needs it: `torchrun --nproc-per-node 2 -m mixq search …`."""

import sys

from mixq.cli import main

sys.exit(main())
