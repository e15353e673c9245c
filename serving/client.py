"""A small client: sends images, returns predictions, raises `ServerError`."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from chorus.pipeline.core.retries import RETRIES
from chorus.pipeline.errors import ChorusError
from chorus.serving.contract.schemas import (
    JSON,
    NPZ,
    ZIP,
    EnsembleInfo,
    EnsembleList,
    JobState,
    Output,
    Prediction,
    PredictOptions,
    PredictRequest,
    SourceUrl,
)

_MEDIA = {
    ".npy": "application/x-npy",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
_ENDED = ("done", "failed", "cancelled")


class ServerError(ChorusError):
    """The server refused or failed a request.

    Attributes
    ----------
    status : of HTTP; 0 where the server could not be reached
    request_id : identifies the request in the server's logs
    """

    def __init__(self, message: str, status: int = 0, request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id


@dataclass(frozen=True)
class Segmented:
    """A prediction with its arrays.

    Attributes
    ----------
    arrays : by name: ``labels`` (y, x), ``objects-<class>`` (y, x), ``probability`` (classes, y, x), ``uncertainty``,
        ``epistemic`` and ``aleatoric`` (y, x), ``flows`` (2, y, x), as far as they were asked for
    """

    prediction: Prediction
    arrays: dict[str, NDArray[Any]]


class Client:
    """Talks to a server of `chorus serve`.

    Parameters
    ----------
    url : of the server
    token : accepted by the server; none for a server without tokens on this machine
    timeout : seconds to wait for an answer
    retries : how often to repeat a request that was refused because the server is busy
    transport : of httpx, for tests
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = RETRIES.client_retries,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ensembles(self) -> list[EnsembleInfo]:
        """Return the ensembles that the server hosts."""
        return EnsembleList.model_validate_json(self._send("GET", "/v1/ensembles").content).ensembles

    def predict(self, image: NDArray[Any] | str | Path, **options: Any) -> Prediction:
        """Predict an image; return its scores and flags.

        Parameters
        ----------
        image : (y, x), (channels, y, x) or (y, x, 3); a TIFF, PNG, JPEG or NPY file; or the URL of an OME-Zarr
        options : of `chorus.serving.contract.schemas.PredictOptions`; with a URL also ``path``, of the image inside it

        Raises
        ------
        ServerError : the image was refused, or is too large to be answered at once: see `submit`
        """
        answer = self._predict(image, JSON, options)
        if answer.status_code == 202:
            raise ServerError("the image is too large to be answered at once; use `Client.submit`", 202)
        return Prediction.model_validate_json(answer.content)

    def segment(
        self, image: NDArray[Any] | str | Path, outputs: Sequence[Output] = ("labels",), **options: Any
    ) -> Segmented:
        """Predict an image; return its scores, flags and arrays.

        Parameters
        ----------
        image : (y, x) or (channels, y, x); or a file or URL, see `predict`
        outputs : names of the arrays to return
        options : see `predict`

        Returns
        -------
        The prediction and its arrays; see `Segmented` for their shapes

        Raises
        ------
        ServerError : see `predict`
        """
        answer = self._predict(image, NPZ, options | {"outputs": list(outputs)})
        if answer.status_code == 202:
            raise ServerError("the image is too large to be answered at once; use `Client.submit`", 202)
        with np.load(io.BytesIO(answer.content), allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
        return Segmented(Prediction.model_validate_json(str(arrays.pop("prediction"))), arrays)

    def zarr(self, image: NDArray[Any] | str | Path, **options: Any) -> bytes:
        """Predict an image; return a zipped OME-Zarr of all maps and label images.

        Parameters
        ----------
        image : (y, x) or (channels, y, x); or a file or URL, see `predict`
        options : see `predict`
        """
        return self._predict(image, ZIP, options).content

    def submit(self, image: NDArray[Any] | str | Path, **options: Any) -> JobState:
        """Submit a large image; poll it with `job`, or follow it with `watch`.

        Parameters
        ----------
        image : (y, x) or (channels, y, x); or a file or URL, see `predict`
        options : see `predict`
        """
        answer = self._predict(image, JSON, options)
        if answer.status_code == 202:
            return JobState.model_validate_json(answer.content)
        prediction = Prediction.model_validate_json(answer.content)
        return JobState(id=prediction.id, ensemble=prediction.ensemble, state="done", prediction=prediction)

    def job(self, job: str) -> JobState:
        """Return the state of a large image's job."""
        return JobState.model_validate_json(self._send("GET", f"/v1/predictions/{job}").content)

    def watch(self, job: str, every: float = 1.0) -> Iterator[JobState]:
        """Yield the state of a large image's job every `every` seconds, until it has ended."""
        while True:
            state = self.job(job)
            yield state
            if state.state in _ENDED:
                return
            time.sleep(every)

    def cancel(self, job: str) -> None:
        """Stop the job of a large image, and remove its partial results."""
        self._send("DELETE", f"/v1/predictions/{job}")

    def _predict(self, image: NDArray[Any] | str | Path, media: str, options: dict[str, object]) -> httpx.Response:
        path = str(options.pop("path", ""))
        asked = PredictOptions.model_validate(options)
        headers = {"Accept": media}
        if isinstance(image, str) and "://" in image:
            body = PredictRequest(source=SourceUrl(url=image, image=path), options=asked).model_dump(mode="json")
            return self._send("POST", "/v1/predict", json=body, headers=headers)
        query = asked.model_dump(mode="json", exclude_defaults=True)
        if isinstance(image, (str, Path)):
            content, kind = Path(image).read_bytes(), _MEDIA.get(Path(image).suffix.lower(), "application/octet-stream")
        else:
            buffer = io.BytesIO()
            np.save(buffer, image, allow_pickle=False)
            content, kind = buffer.getvalue(), "application/x-npy"
        return self._send(
            "POST", "/v1/predict", params=query, content=content, headers=headers | {"Content-Type": kind}
        )

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        for attempt in range(self._retries + 1):
            try:
                answer = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                raise ServerError(
                    f"{self._http.base_url}: cannot be reached ({error or type(error).__name__})"
                ) from error
            if answer.status_code not in (429, 503) or attempt == self._retries:
                break
            time.sleep(min(RETRIES.client_longest_wait, float(answer.headers.get("Retry-After", 1))))
        if answer.is_success:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        detail = problem.get("detail") or problem.get("title") or answer.reason_phrase
        raise ServerError(f"{detail} ({answer.status_code})", answer.status_code, problem.get("request_id", ""))
