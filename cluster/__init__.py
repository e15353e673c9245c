"""Where it runs: Ray sessions, placement of members on devices, the stream of regions, the ledger.

Begin with `plan` (what there is to do), then `worker` (what an actor does with a region), `stream` (Ray Data)
and `reprocess` (a whole run).
"""
