"""How long does it take to find what is finished in a bucket, of how much memory, and in how many requests?

A server on loopback lists the ledger of a large run as Amazon or Google does, each page after a wait; `Ledger.scan`
reads it. Beside it stands what fsspec's ``find`` takes to list the same. The run's table of images is in memory before.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from enum import StrEnum
from typing import Annotated
from urllib.request import urlopen
from xml.sax.saxutils import escape

import typer
from aiohttp import web
from planning import synthetic_images

from chorus.cluster.planning.image_table import ImageTable
from chorus.cluster.state.ledger import Ledger
from chorus.pipeline.io import storage

app = typer.Typer(no_args_is_help=True)
_TIMES = '"timeCreated":"2026-01-01T00:00:00.000Z","updated":"2026-01-01T00:00:00.000Z"'


class Kind(StrEnum):
    """The servers that are imitated."""

    s3 = "s3"
    gs = "gs"


@app.command()
def scan(
    images: Annotated[int, typer.Option(help="Images of the run.")] = 100_000,
    regions: Annotated[int, typer.Option(help="Finished regions of each; every image is finished, too.")] = 9,
    kind: Kind = Kind.s3,
    milliseconds: Annotated[float, typer.Option(help="Wait before each page.")] = 50,
    find: Annotated[bool, typer.Option("--find", help="List by fsspec's find instead.")] = False,
) -> None:
    """Print seconds, requests and peak memory of one listing."""
    command = [sys.executable, __file__, "serve", str(images), str(regions), str(milliseconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        place = server.stdout.readline().strip()
        try:
            os.environ |= {"AWS_ENDPOINT_URL": place, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
            os.environ |= {"STORAGE_EMULATOR_HOST": place, "FSSPEC_GS_TOKEN": "anon", "AWS_DEFAULT_REGION": "us-east-1"}
            _scan(f"{kind}://lab/out", images, regions, place, find=find)
        finally:
            server.kill()


def _scan(out: str, images: int, regions: int, place: str, *, find: bool) -> None:
    table = ImageTable.collect(
        replace(image, name=_name(index)) for index, image in enumerate(synthetic_images(images, regions, 1024))
    )
    before, begun, worked = _peak(), time.perf_counter(), time.process_time()
    if find:
        fs, path = storage.filesystem(f"{out}/ledger")
        count = len(fs.find(path))
    else:
        finished = Ledger(out).scan(table)
        count = int(finished.images.sum() + finished.regions.sum())
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    with urlopen(f"{place}/count") as answer:
        requests = int(answer.read())
    print(f"{count} of {images * (regions + 1)} records in {seconds:.1f} s ({cpu:.1f} s of CPU), {requests} requests")
    print(f"peak memory {_peak():.0f} MB, of which {before:.0f} MB before")


@app.command(hidden=True)
def serve(images: int, regions: int, milliseconds: float) -> None:
    """Serve listings on a free port, which is printed."""
    count = 0
    records = [*(f"region-{j:08d}.json" for j in range(regions))]
    leaves = ["image.json", *records]

    def key(at: int) -> str:
        return f"out/ledger/{_name(at // len(leaves))}/{leaves[at % len(leaves)]}"

    def first_after(name: str, *, itself: bool) -> int:
        low, high = 0, images * len(leaves)
        while low < high:
            middle = (low + high) // 2
            if key(middle) < name or (key(middle) == name and not itself):
                low = middle + 1
            else:
                high = middle
        return low

    async def page(request: web.Request) -> web.Response:
        nonlocal count
        if request.path == "/count":
            return web.Response(text=str(count))
        count += 1
        await asyncio.sleep(milliseconds / 1000)
        asked, end = request.query, images * len(leaves)
        if request.path.endswith("/o"):
            first = int(asked.get("pageToken") or first_after(asked.get("startOffset", ""), itself=True))
            end = first_after(asked["endOffset"], itself=True) if "endOffset" in asked else end
            last = min(end, first + 1000)
            items = [_google(key(at), whole="fields" not in asked) for at in range(first, last)]
            more = f',"nextPageToken":"{last}"' if last < end else ""
            text = f'{{"kind":"storage#objects","items":[{",".join(items)}]{more}}}'
            return web.Response(text=text, content_type="application/json")
        token = asked.get("continuation-token")
        first = int(token) if token else first_after(asked.get("start-after", ""), itself=False)
        last = min(end, first + 1000)
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < end else ""
        text = "".join(_amazon(key(at)) for at in range(first, last))
        whole = f"<IsTruncated>{str(last < end).lower()}</IsTruncated>{more}{text}"
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        text = f'<?xml version="1.0"?><ListBucketResult xmlns="{space}">{whole}</ListBucketResult>'
        return web.Response(text=text, content_type="application/xml")

    async def run() -> None:
        server = web.Application()
        server.router.add_route("GET", "/{path:.*}", page)
        runner = web.AppRunner(server, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def _name(index: int) -> str:
    return f"img-{index:07d}.ome.zarr"


def _google(name: str, *, whole: bool) -> str:
    """An object as it is listed; all of it as Google answers without ``fields``."""
    short = f'"name":{json.dumps(name)},"size":"22398","generation":"1700000000000001"'
    if not whole:
        return f"{{{short}}}"
    link = f"https://storage.googleapis.com/download/storage/v1/b/lab/o/{name.replace('/', '%2F')}"
    more = f'"kind":"storage#object","id":"lab/{name}/17","selfLink":"{link}","mediaLink":"{link}?alt=media"'
    return f'{{{short},{more},"bucket":"lab","md5Hash":"1B2M2Y8AsgTpgAmY7PhCfg==","crc32c":"AAAAAA==",{_TIMES}}}'


def _amazon(name: str) -> str:
    about = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;d41d8cd98f00b204&quot;</ETag>"
    return f"<Contents><Key>{escape(name)}</Key>{about}<Size>22398</Size></Contents>"


def _peak() -> float:
    """Return the peak memory of this process, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    app()
