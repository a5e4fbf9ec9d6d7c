"""Azure Blob Storage: `az://CONTAINER/PATH`, the account from `AZURE_STORAGE_ACCOUNT_NAME`.

Credentials are a key (`AZURE_STORAGE_ACCOUNT_KEY`), or those that Azure's own tools find: environment, workload or managed identity.
`AZURE_STORAGE_BLOB_ENDPOINT` names another server than Azure's, such as an emulator.
"""

import functools
import os
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs as pafs

_MEANINGS = (
    (
        ("authenticationfailed", "authorizationfailure", "authorizationpermissionmismatch", "defaultazurecredential", "clientauthenticationerror", "failed to authenticate"),
        "Azure refuses the credentials; check AZURE_STORAGE_ACCOUNT_KEY, or the identity and its role on the container",
    ),
    (("containernotfound", "specified container does not exist"), "there is no such container; create it first"),
    (
        ("could not connect", "failed to establish", "couldn't connect", "could not resolve", "name or service", "timed out"),
        "the storage account does not answer; check AZURE_STORAGE_ACCOUNT_NAME and the network",
    ),
)  # fmt: skip


def for_reading(bucket: str) -> pafs.AzureFileSystem:
    """See `stores.Store`."""
    endpoint = os.environ.get("AZURE_STORAGE_BLOB_ENDPOINT")
    server: dict[str, str] = {}
    if endpoint:
        parts = urlsplit(endpoint)
        for kind in ("blob", "dfs"):
            server |= {f"{kind}_storage_authority": parts.netloc, f"{kind}_storage_scheme": parts.scheme}
    return pafs.AzureFileSystem(_account(), account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"), **server)


def put(path: str, data: bytes) -> None:
    """See `stores.Store`: blocks are committed together."""
    _blob(path).upload_blob(data, overwrite=True)


def put_if(path: str, data: bytes, expected: str | None) -> bool:
    """See `stores.Store`: `If-Match`, or `If-None-Match: *`.

    A write whose answer was lost is sent again and then meets its own blob: that counts as written.
    """
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError

    condition: dict[str, Any] = {"overwrite": False}
    if expected is not None:
        condition = {"overwrite": True, "etag": expected, "match_condition": MatchConditions.IfNotModified}
    blob = _blob(path)
    try:
        # What is too large for one request goes as blocks, and what commits them carries the condition.
        blob.upload_blob(data, **condition)
    except (ResourceExistsError, ResourceModifiedError, ResourceNotFoundError):
        try:
            return bool(blob.download_blob().readall() == data)
        except ResourceNotFoundError:
            head_bucket(path.split("/")[0])
            return False
    return True


def etag(path: str) -> str:
    return str(_blob(path).get_blob_properties().etag)


def head_bucket(bucket: str) -> None:
    _client().get_container_client(bucket).get_container_properties()


def delete_folder(filesystem: pafs.FileSystem, path: str) -> None:
    """See `stores.Store`."""
    filesystem.delete_dir(path)


def abort_uploads(path: str) -> None:
    """Nothing to do: Azure forgets blocks that nobody has committed within a week."""


def errors() -> tuple[type[Exception], ...]:
    from azure.core.exceptions import AzureError

    return OSError, ValueError, AzureError


def meaning(error: BaseException) -> str | None:
    text = f"{type(error).__name__} {error} {error.__cause__ or ''}".lower()
    return next((sentence for signs, sentence in _MEANINGS if any(sign in text for sign in signs)), None)


def _account() -> str:
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ValueError("which storage account is meant is not said; set AZURE_STORAGE_ACCOUNT_NAME")
    return account


def _client() -> Any:
    key, endpoint = os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"), os.environ.get("AZURE_STORAGE_BLOB_ENDPOINT")
    return _connected(_account(), key, endpoint)


@functools.lru_cache(maxsize=4)
def _connected(account: str, key: str | None, endpoint: str | None) -> Any:
    """Kept: each new client would ask for a token of its own."""
    from azure.storage.blob import BlobServiceClient

    address = f"{endpoint.rstrip('/')}/{account}" if endpoint else f"https://{account}.blob.core.windows.net"
    if key:
        return BlobServiceClient(address, credential=key)
    from azure.identity import DefaultAzureCredential

    return BlobServiceClient(address, credential=DefaultAzureCredential())


def _blob(path: str) -> Any:
    container, _, key = path.partition("/")
    return _client().get_blob_client(container, key)
