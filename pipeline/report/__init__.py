"""The report of a run: one page to look at, with the images that need a person's eye first.

Begin with `page` (what stands on it, from ``run.json`` and ``scores.parquet``), then `pictures` (an image, its
outlines and its doubt, small enough to travel inside the page). ``report.html.j2`` is the page itself.
"""

from pipeline.report.page import write_report

__all__ = ["write_report"]
