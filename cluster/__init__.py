"""Where it runs: Ray sessions, placement of members on devices, the stream of regions, the ledger.

Begin with `plan` (what there is to do), then `worker` (what an actor does with a region), `stream` (Ray Data)
and `reprocess` (a whole run).
"""

import os

# Read when Ray is imported: it shall not report home, nor print to standard output, where --json goes, when one of its
# processes dies (we say that a region was begun anew, and where the logs are).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
