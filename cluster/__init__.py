"""Execution of runs: Ray sessions, placement of members on devices, the stream of regions, the ledger.

Begin with `planning` (the plan of a run), then `regions` (what an actor does with a region) and `runs` (a whole run);
`predict` combines them. `runtime` wraps Ray, `state` records finished work. Rooms use those below them in the order
of the contracts in pyproject.toml.
"""

import os

# Read when Ray is imported: it shall not report home, nor print to standard output, where --json goes, when one of its
# processes dies (Chorus itself reports that a region was retried, and where the logs are).
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
