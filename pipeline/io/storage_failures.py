"""Storage failures in words: what a user can do about a disk, a bucket, a server or a login that fails."""

from __future__ import annotations

import errno
import gzip
from collections.abc import Iterator
from contextlib import contextmanager

from chorus.pipeline.errors import OutputError
from chorus.pipeline.io.storage import scheme

# Types of the libraries below fsspec, as package and name: so none of them is imported to look for its errors.
_NETWORK_ERRORS = {
    "aiohttp.ClientConnectionError",
    "azure.ServiceRequestError",
    "azure.ServiceResponseError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "google.TransportError",
    "requests.ConnectionError",
}
_BROKEN_OFF = {
    "aiohttp.ClientPayloadError",
    "azure.IncompleteReadError",
    "botocore.IncompleteReadError",
    "botocore.ResponseStreamingError",
}
_SIGN_IN_ERRORS = {
    "azure.ClientAuthenticationError",
    "botocore.NoCredentialsError",
    "botocore.PartialCredentialsError",
    "botocore.CredentialRetrievalError",
    "botocore.TokenRetrievalError",
    "botocore.SSOError",
    "botocore.ProfileNotFound",
    "google.DefaultCredentialsError",
    "google.RefreshError",
}
_OTHER_ERRORS = {
    "aiohttp.ClientError",
    "azure.AzureError",
    "botocore.BotoCoreError",
    "gcsfs.HttpError",
    "gcsfs.ChecksumError",
    "gcsfs.NonRetryableError",
    "google.GoogleAuthError",
    "google.GoogleAPIError",
}
_SIGN_IN = {
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and sign in with `az login` "
    "(AZURE_STORAGE_ANON=true reads public containers without)",
    "gs": "sign in with `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS "
    "(FSSPEC_GS_TOKEN=anon reads public buckets without)",
    "s3": "sign in with `aws sso login` or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (FSSPEC_S3_ANON=true reads "
    "public buckets without)",
}


def one_line(error: BaseException) -> str:
    """Return an error's message in one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def failure_sentence(error: BaseException, url: str) -> str | None:
    """Explain a storage error in one sentence; None if it is not storage's, for example of damaged data."""
    if _is_damage(error):
        return None
    names, text = _type_names(error), str(error).lower()
    if "botocore.ClientError" in names:
        error = _as_os_error(error)
    number = getattr(error, "errno", None)
    status = _http_status(error, names)
    reason = f"the server answered {status}" if status else one_line(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{url}: no space left; free some or choose another --out, then run the same command again"
    if number == errno.EROFS:
        return f"{url}: the file system is read-only; choose another place"
    if "requester pays" in text:
        return f"{url}: whoever reads this bucket pays; set FSSPEC_GS_REQUESTER_PAYS to the project that does"
    if names & _SIGN_IN_ERRORS or status == 401:
        return f"{url}: not signed in ({reason}); {_SIGN_IN.get(scheme(url), 'give a URL that needs no login')}"
    if status == 403 or isinstance(error, PermissionError) or text.startswith("forbidden"):  # as gcsfs words 403
        answer = f" ({reason})" if status else ""
        return f"{url}: permission denied{answer}; check the rights of the folder or the credentials in the environment"
    if "nosuchbucket" in text or "bucket does not exist" in text:
        return f"{url}: no such bucket; check its name and the project or account that you are signed in to"
    if status == 404 or isinstance(error, FileNotFoundError):
        return f"{url}: not found; check the path or URL"
    if names & _BROKEN_OFF:
        return (
            f"{url}: the connection breaks off in the middle ({one_line(error)}); check the network, then run the same "
            "command again to resume"
        )
    if names & _NETWORK_ERRORS or isinstance(error, ConnectionError | TimeoutError):
        return (
            f"{url}: the server cannot be reached ({one_line(error)}); check the address and the network, then run the "
            "same command again to resume"
        )
    if status in (408, 429) or (status or 0) >= 500:
        return f"{url}: the server is busy or failing ({reason}); run the same command again to resume"
    if isinstance(error, OSError) or names & _OTHER_ERRORS or text.startswith("bad request: "):
        return f"{url}: storage failed ({reason}); check the URL, then run the same command again to resume"
    return None


def _type_names(error: BaseException) -> set[str]:
    """Return the types of an error as top-level package and name, for example ``aiohttp.ClientError``."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _as_os_error(error: BaseException) -> BaseException:
    """Convert a ClientError of botocore to the OSError that s3fs makes of its code, such as AccessDenied."""
    from s3fs.errors import translate_boto_error  # takes a second to import, and is there when botocore is

    translated: BaseException = translate_boto_error(error)
    return translated


def _http_status(error: BaseException, names: set[str]) -> int | None:
    """Return the status that a web server or Google's storage answered with."""
    if "aiohttp.ClientResponseError" in names:
        return int(getattr(error, "status", 0)) or None
    if "azure.HttpResponseError" in names:
        return int(getattr(error, "status_code", 0) or 0) or None
    if "gcsfs.HttpError" in names:
        code = str(getattr(error, "code", ""))
        return int(code) if code.isdecimal() else None
    # s3fs makes OSErrors of what S3 answers, by their names; a status without one is in the error before.
    answer = getattr(error.__cause__, "response", None)
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) if isinstance(answer, dict) else 0
    return status if status in (408, 429) or status >= 500 else None


def _is_damage(error: BaseException) -> bool:
    """Return whether an OSError is of a decoder: gzip, and bz2, which has no type of its own."""
    return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.args == ("Invalid data stream",))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert storage errors to an OutputError of one sentence; other errors pass.

    Raises
    ------
    OutputError : storage does not take it
    """
    try:
        yield
    except Exception as error:
        sentence = failure_sentence(error, url)
        if sentence is None:
            raise
        raise OutputError(sentence) from error
