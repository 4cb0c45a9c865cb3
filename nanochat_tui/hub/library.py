"""`huggingface_hub`, imported when something is fetched and not before, and what it raises in one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanochat_tui.errors import UserError, WriteError, plain_reason
from nanochat_tui.hub.choice import RepoFile
from nanochat_tui.hub.reference import Reference
from nanochat_tui.text import display_safe
from nanochat_tui.version import __version__

_HTTP_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""What the library asks with, by version; a failure to connect is an exception of it."""


class HubError(UserError):
    """The hub, or the way to it, failed. Exit code 1."""

    exit_code = 1


def quiet() -> None:
    """Keep the library's progress bars and warnings, some with addresses that hold signatures, off the terminal."""
    from huggingface_hub import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not are_progress_bars_disabled():
        disable_progress_bars()


def endpoint() -> str:
    """Return the server that is asked, HF_ENDPOINT or Hugging Face."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def cache_folder() -> Path:
    """Return Hugging Face's cache (HF_HUB_CACHE, HF_HOME), which other programs share."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def headers() -> dict[str, str]:
    """Return what a request has: who asks, and the token of HF_TOKEN or `hf auth login` if there is one."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not marked

    made: dict[str, str] = build_hf_headers(library_name="nanochat-tui", library_version=__version__)
    return made


def listing(reference: Reference) -> tuple[str, list[RepoFile]]:
    """Return the commit that a revision stands for, and the files of a repository. Raises HubError or UserError."""
    from huggingface_hub import HfApi

    quiet()
    api = HfApi(library_name="nanochat-tui", library_version=__version__)
    try:
        info = api.model_info(reference.repo, revision=reference.revision, files_metadata=True, timeout=30)
    except Exception as error:
        said = translated(error, reference)
        if said is error:
            raise
        raise said from error
    commit = info.sha
    if not commit or not all(c in "0123456789abcdef" for c in commit):
        raise HubError(f"{endpoint()} does not say which commit {reference.repo} is at; check HF_ENDPOINT")
    found = []
    for each in info.siblings or ():
        large = getattr(each, "lfs", None)
        size = each.size if large is None else large["size"] if isinstance(large, dict) else large.size
        sha256 = None if large is None else large["sha256"] if isinstance(large, dict) else large.sha256
        if isinstance(size, int) and size >= 0:
            found.append(RepoFile(each.rfilename, size, sha256, getattr(each, "blob_id", None)))
    return commit, found


def translated(error: BaseException, reference: Reference, name: str | None = None) -> BaseException:
    """Return what went wrong with a repository as one sentence; what is no failure of network or hub comes back."""
    from huggingface_hub import errors

    where, server = reference.repo, endpoint()
    status = _status(error)
    if isinstance(error, UserError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{where} is not on this machine, and HF_HUB_OFFLINE is set; unset it to fetch the model")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return HubError(
            f"{where} is open only to those whom its publisher has let in; ask on its page, then set HF_TOKEN to a "
            "token of yours"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{where} has no revision {display_safe(reference.revision)}; leave --revision out")
    if isinstance(error, errors.EntryNotFoundError) and name is not None:
        return HubError(f"{where} has lost the file {display_safe(name)} in the meantime; run the command again")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return UserError(
            f"{server} has no repository {where} for you; check its spelling, and for a private one set HF_TOKEN"
        )
    if status == 429:
        return HubError(f"{server} takes no more requests from here for now{_when(error)}; run the command again later")
    if status is not None:
        return HubError(f"{server} answered {status}; run the command again later")
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"{server} does not answer as a hub does; check HF_ENDPOINT")
    if type(error).__module__.partition(".")[0] in _HTTP_PACKAGES:
        return HubError(
            f"{server} cannot be reached ({_words(error)}); check the connection and HTTPS_PROXY, then run the command "
            "again: what has arrived is kept"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return translated(error.__cause__, reference, name) if error.__cause__ else _unreachable(server)
    if isinstance(error, OSError) and error.errno is not None:
        return WriteError(f"the model cannot be stored ({plain_reason(error)}); what has arrived is kept")
    if isinstance(error, OSError):
        return HubError(
            f"{server} sent another file than it announced; run the command again: what has arrived is kept"
        )
    return error


def _unreachable(server: str) -> HubError:
    return HubError(f"{server} cannot be reached; check the connection, then run the command again")


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _when(error: Any) -> str:
    value = str(error.response.headers.get("Retry-After", ""))
    return f" and asks to wait {value} s" if value.isdecimal() and len(value) < 7 else ""


def _words(error: BaseException) -> str:
    name = type(error).__name__
    if "Timeout" in name:
        return "no answer in time"
    return "no connection" if "Connect" in name else display_safe(" ".join(str(error).split()), 120) or name
