"""Where it runs: Ray sessions, placement of members on devices, the stream of regions, the ledger.

Begin with `planning` (what a run will be), then `regions` (what an actor does with one) and `runs` (from begin to end);
`predict` puts them together. `runtime` is Ray itself, `state` what is finished. Rooms use those below them in the order
of the contracts in pyproject.toml.
"""

import os

# Read when Ray is imported: it shall not report home, nor print to standard output, where --json goes, when one of its
# processes dies (we say that a region was begun anew, and where the logs are).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
