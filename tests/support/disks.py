"""A record of what a process syncs and renames, in order."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Disk:
    """Events in order: a path that was synced, or a pair of paths that was renamed."""

    events: list[Path | tuple[Path, Path]] = field(default_factory=list)
    synced: set[Path] = field(default_factory=set)

    def renamed(self, target: Path) -> int:
        """When a file got its name, last."""
        times = [at for at, event in enumerate(self.events) if isinstance(event, tuple) and event[1] == target]
        assert times, f"{target} was not renamed"
        return times[-1]

    def synced_before(self, target: Path) -> set[Path]:
        """What was on the disk, unchanged since, when a file got its name."""
        found: set[Path] = set()
        for event in self.events[: self.renamed(target)]:
            if isinstance(event, tuple):
                found.discard(event[1])
                found.discard(event[1].parent)
            else:
                found.add(event)
        return found

    def synced_after(self, target: Path) -> set[Path]:
        return {event for event in self.events[self.renamed(target) :] if isinstance(event, Path)}

    def content_synced(self, target: Path) -> bool:
        """Whether the content of a file was on the disk before it got its name."""
        event = self.events[self.renamed(target)]
        assert isinstance(event, tuple)
        return event[0] in self.synced


def watched(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Watch `os.fsync` and the renaming of files from here on."""
    disk, fsync, replace = Disk(), os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        disk.events.append(path)
        disk.synced.add(path)

    def rename(part: Path, target: Path) -> Path:
        disk.events.append((part, Path(target)))
        return replace(part, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    return disk
