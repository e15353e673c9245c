"""Zarr stores on local disks. Apart from `storage`, which must be imported without zarr."""

from __future__ import annotations

import zarr.storage
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from chorus.pipeline.io.storage import check_regular


class LocalFiles(zarr.storage.LocalStore):
    """A store on a local disk that opens files, and no pipes or devices, which may never end."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the content of a key; raise RefusedError if it is not a regular file."""
        check_regular(LocalFileSystem(), str(self.root / key))
        return await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read the content of a key as `get` does."""
        check_regular(LocalFileSystem(), str(self.root / key))
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)
