"""The S3 clients: credentials, bounded retries, conditional writes, and what their errors mean.

pyarrow reads (it streams column chunks in parallel), s3fs writes (pyarrow's stream completes an upload even when its
writer failed half-way). Both take credentials, region and endpoint from the environment or the instance role, and both
retry throttling, 5xx and lost connections with exponential backoff and jitter: `standard` mode of the AWS SDKs,
https://docs.aws.amazon.com/sdkref/latest/guide/feature-retry-behavior.html.
"""

import os
import random
import time
from collections.abc import Mapping
from typing import Any

from pyarrow import fs as pafs

# First try included: half a minute of an endpoint that is down, then the job stops with a sentence and can be resumed.
ATTEMPTS = 6
CONNECT_SECONDS = 5
READ_SECONDS = 60
CONFLICT, PRECONDITION_FAILED = 409, 412

_MEANINGS = (
    (
        ("access_denied", "access key", "signature", "forbidden", "credential", "accessdenied", "invalid_access_key"),
        "S3 refuses the credentials; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the role and its policy",
    ),
    (("nosuchbucket", "no_such_bucket", "bucket does not exist"), "there is no such bucket; create it first"),
    (
        ("permanentredirect", "moved permanently", "status 301", "(301)", "authorizationheadermalformed"),
        "the bucket lies in another region; set AWS_REGION to its region",
    ),
    (("notimplemented",), "the store has no conditional writes, without which two jobs could publish at once"),
    (("conditionalrequestconflict",), "S3 is busy with other writes there; run the same command again"),
    (
        ("network_connection", "could not connect", "connection was closed", "connect timeout", "timed out"),
        f"the S3 endpoint does not answer ({ATTEMPTS} attempts); check AWS_ENDPOINT_URL and the network",
    ),
)


def for_reading(bucket: str) -> pafs.S3FileSystem:
    """pyarrow's filesystem for the bucket. Raises OSError when its region is not set and cannot be found."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
    )


def for_writing() -> Any:
    """s3fs, retried by botocore alone: its own loop has no jitter and would multiply the attempts."""
    import s3fs

    retries = {"mode": "standard", "max_attempts": ATTEMPTS}
    filesystem = s3fs.S3FileSystem(
        config_kwargs={"retries": retries, "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
    )
    filesystem.retries = 1
    return filesystem


def errors() -> tuple[type[Exception], ...]:
    """What the clients raise when S3 says no or nothing."""
    from botocore.exceptions import BotoCoreError, ClientError

    return OSError, BotoCoreError, ClientError


def head_bucket(bucket: str) -> None:
    """Ask for the bucket itself: unlike a listing, this tells a missing bucket from an empty one. Raises `errors()`."""
    try:
        for_writing().call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError as error:
        raise OSError("NoSuchBucket") from error


def put(path: str, data: bytes) -> None:
    """One PUT, which S3 makes visible whole; above 100 MB a multipart upload, visible whole when completed."""
    for_writing().pipe_file(path, data)


def put_if(path: str, data: bytes, expected: str | None) -> bool:
    """Conditional PUT: only if the object is still the version `expected`, or absent (None). Whether it was written.

    A PUT whose answer was lost is retried and then meets its own object: that counts as written. One that meets another
    PUT (409) is tried again, as S3 asks for. Raises `errors()`, also where it meets others every time and none of them lands.
    """
    refusal = _put_if(path, data, {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected})
    if refusal is None:
        return True
    try:
        if for_writing().cat_file(path) == data:
            return True
        unchanged = etag(path) == expected
    except FileNotFoundError:
        unchanged = expected is None
    if unchanged and _answer(refusal)[0] == CONFLICT:
        raise refusal
    return False


def _put_if(path: str, data: bytes, condition: Mapping[str, str]) -> OSError | None:
    """None once it is written, or the error that says that the condition does not hold, or that others write there."""
    filesystem = for_writing()
    attempt = 0
    while True:
        attempt += 1
        try:
            # One PUT up to the 5 GiB that S3 takes: of a multipart upload s3fs would forget the condition.
            filesystem.pipe_file(path, data, chunksize=5 << 30, **condition)
            return None
        except OSError as error:
            status, code = _answer(error)
            # An object that is gone (NoSuchKey) has no version to match.
            if status not in (CONFLICT, PRECONDITION_FAILED) and code != "NoSuchKey":
                raise
            if status != CONFLICT or attempt >= ATTEMPTS:
                return error
        time.sleep(random.uniform(0, 0.1 * 2**attempt))


def etag(path: str) -> str:
    return str(for_writing().info(path, refresh=True)["ETag"])


def _answer(error: OSError) -> tuple[int | None, str | None]:
    """(HTTP status, error code) of the answer that s3fs made an error of."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), response.get("Error", {}).get("Code")


def delete_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """In requests of a thousand objects each."""
    filesystem.delete_dir(path)


def abort_uploads(path: str) -> None:
    """Give up the unfinished multipart uploads below a prefix."""
    bucket, _, prefix = path.partition("/")
    client = for_writing()
    marker: dict[str, str] = {}
    while True:
        # Below the folder: beside it there may be others whose names begin alike.
        below = f"{prefix.rstrip('/')}/" if prefix else ""
        found = client.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=below, **marker)
        for upload in found.get("Uploads") or []:
            client.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        if not found.get("IsTruncated"):
            return
        marker = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}


def meaning(error: BaseException) -> str | None:
    """What an error of either client means to the user, or None where its own words are best."""
    text = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    return next((sentence for signs, sentence in _MEANINGS if any(sign in text for sign in signs)), None)
