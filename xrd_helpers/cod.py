"""CIF files fetched from the Crystallography Open Database (COD), one at a time.

The interface is documented on https://wiki.crystallography.net/RESTful_API/: a search is a GET of ``result`` with
``spacegroup`` (Hermann-Mauguin symbol), ``vmin`` and ``vmax`` (Å³) and ``format=lst``, which answers with COD numbers, one
a line; an entry is ``<number>.cif``. https://wiki.crystallography.net/howtoobtaincod/ asks for a pause between files, and
for rsync or Subversion in place of this for the whole database.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode, urljoin, urlsplit

import gemmi
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError, IncompleteRead, InvalidHeader, MaxRetryError
from urllib3.util import Retry

from . import __version__
from .config import UserError, atomic_path, refuse_devices

COD = "https://www.crystallography.net/cod"
AGENT = f"xrd_helpers/{__version__} (XRD Phase; python-requests)"
TRIES = 4  # of one file; the waits between them are 4, 16 and 64 pauses, or what the server asks for
MAX_WAIT = 600.0  # s, for a server that asks for more
MAX_REFUSALS = 3  # files given up one after another, each after its tries: the server wants no more
MAX_BYTES = 100_000_000
MAX_REDIRECTS = 5
MOST_WAITS = 10  # timeouts that one answer may take
LEAST_FREE = 1e9  # bytes that are left on a disk


class CodError(UserError):
    """The database cannot be used, and why."""


class _Failed(Exception):
    """A request that was given up; `refused` if the fault is the server's, and not that of the one entry."""

    def __init__(self, message, refused):
        super().__init__(message)
        self.refused = refused


@dataclass
class Fetched:
    """What a call of ``fetch_cod`` did: COD numbers, as text; ``failed`` has a sentence for each."""

    found: int  # entries that the search gave
    fetched: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)  # were in the folder already
    failed: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)  # are there, but not with the checksum of the list


def fetch_cod(out, spacegroup, limit, max_volume=None, server=COD, pause=1.0, timeout=60.0, ids=None) -> Fetched:
    """Fetch entries of a space group, or of a list, from COD into a folder, as ``<number>.cif``.

    One request at a time. A file gets its name only when it is complete, can be parsed and says that it is the entry
    asked for; one that is in the folder already and passes the same test is not asked for again, so that the same call
    goes on where an earlier one stopped. COD's numbers go by journal: the entries are taken in an order that mixes
    them, the same each time, so that a larger `limit` adds to what is there.

    Parameters
    ----------
    out : str or Path
        The folder; made if it does not exist.
    spacegroup : str
        Hermann-Mauguin symbol; COD lists the settings of a space group apart (P 1 21/n 1 is not P 1 21/c 1).
    limit : int
        Entries to have in the end.
    max_volume : float, optional
        Largest volume of the unit cell, in Å³.
    server : str
        Address of COD or of a mirror.
    pause, timeout : float
        Seconds between two requests, and without any answer until one is given up.
    ids : dict, optional
        As ``read_ids`` gives it; then spacegroup and max_volume are not looked at.

    Raises
    ------
    CodError
        If the space group is unknown or has no entry, the search fails, or MAX_REFUSALS files fail one after another
        for a reason that is not their own.
    """
    client = _Client(server, pause, timeout)
    numbers = list(ids) if ids else _search(client, spacegroup, max_volume)
    chosen = sorted(numbers, key=lambda number: hashlib.sha256(number.encode()).digest())[:limit]
    result, refusals = Fetched(found=len(numbers)), 0
    for number in tqdm(chosen, unit=" files"):
        path = Path(out) / f"{number}.cif"
        if path.is_file() and _problem(path.read_bytes(), number) is None:
            result.present.append(number)
            continue
        try:
            body = client.get(f"{number}.cif", {}, partial(_problem, number=number))
        except _Failed as error:
            result.failed[number] = f"{number}: {error}"
            refusals = refusals + 1 if error.refused else 0
            if refusals == MAX_REFUSALS:
                raise CodError(f"{server} failed on {refusals} files one after another ({error}); {len(result.fetched)} are "
                               f"new in {out}, and the same command goes on from there later") from None
            continue
        refusals = 0
        if shutil.disk_usage(_existing(out)).free < LEAST_FREE + len(body):
            raise CodError(f"less than {LEAST_FREE / 1e9:g} GB is free where {out} lies: make room, then the same command "
                           "goes on")
        with atomic_path(path) as temporary:
            temporary.write_bytes(body)
        result.fetched.append(number)
    for number in [*result.present, *result.fetched]:
        wanted = (ids or {}).get(number)
        if wanted and hashlib.sha256((Path(out) / f"{number}.cif").read_bytes()).hexdigest() != wanted:
            result.other.append(number)
    return result


def _existing(folder):
    """The folder, or the first above it that is there."""
    folder = Path(folder).absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def read_ids(path) -> dict[str, str]:
    """{COD number: SHA-256 of the file or ""} of a list, one number a line, or of a CSV file with columns cod and sha256.

    Raises
    ------
    CodError
        If the file has no such column, or a line is no COD number.
    """
    path = Path(path)
    refuse_devices(path, CodError, MAX_BYTES)
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise CodError(f"{path} is no text file: give a list of COD numbers, one a line, or a CSV with a column cod") from None
    if lines and "," in lines[0]:
        rows = list(csv.DictReader(lines))
        if not rows or "cod" not in rows[0]:
            raise CodError(f"{path} has no column cod: its first line is {lines[0][:60]!r}")
        ids = {(row["cod"] or "").strip(): (row.get("sha256") or "").strip().lower() for row in rows}
        ids.pop("", None)  # a crystal of another source
    else:
        ids = {line.strip(): "" for line in lines if not line.startswith("#")}
    if strange := [number for number in ids if not (number.isascii() and number.isdigit() and len(number) == 7)]:
        raise CodError(f"{path}: {strange[0][:40]!r} is no COD number, which has seven digits")
    if not ids:
        raise CodError(f"{path} names no entry")
    return ids


def _search(client, spacegroup, max_volume):
    """COD numbers of all entries of the space group."""
    group = gemmi.find_spacegroup_by_name(spacegroup)
    if group is None:
        raise CodError(f"{spacegroup!r} is no known space group: write it as in 'P 1 21/c 1'")
    symbol = f"{group.hm} :{group.ext}" if group.ext.strip("\0 ") else group.hm  # as COD writes it, in full
    query = {"spacegroup": symbol, "format": "lst"} | ({"vmax": f"{max_volume:g}"} if max_volume else {})

    def problem(body):
        words = body.split()
        if not all(word.isdigit() and len(word) == 7 for word in words):
            return "the answer is no list of COD numbers"

    try:
        numbers = client.get("result", query, problem).decode("ascii").split()
    except _Failed as error:
        raise CodError(f"the search in {client.server} failed: {error}") from None
    if not numbers:
        limit = f" and a cell of at most {max_volume:g} Å³" if max_volume else ""
        raise CodError(f"{client.server} has no entry with space group {symbol}{limit}")
    return list(dict.fromkeys(numbers))


def _problem(body, number):
    """What is wrong with the bytes of an entry, or None.

    A file cut off at the end of a line may still parse: that it is complete is seen from its length, on the way.
    """
    try:
        document = gemmi.cif.read_string(body.decode("utf-8", errors="replace"))
    except (ValueError, RuntimeError) as error:
        return f"the answer is no CIF file that can be read ({str(error).splitlines()[0]})"
    codes = {gemmi.cif.as_string(code) for block in document if (code := block.find_value("_cod_database_code"))}
    if number not in codes:
        return f"the answer is not this entry: its COD number is {' '.join(sorted(codes)) or 'missing'}"
    return None


class _Waits(Retry):
    """Waits of 4, 16 and 64 times the pause, or what the server asks for; nothing where it asks in words of its own."""

    def get_backoff_time(self):
        return min(self.backoff_max, self.backoff_factor * 4 ** len(self.history))

    def parse_retry_after(self, retry_after):
        try:
            return super().parse_retry_after(retry_after)
        except InvalidHeader:
            return 0


class _Client:
    """Requests to one server, one after another with a pause between, each tried up to TRIES times."""

    def __init__(self, server, pause, timeout):
        if urlsplit(server).scheme not in ("http", "https"):
            raise CodError(f"{server!r} is no address of a server: it has to begin with https:// or http://")
        self.server, self.pause, self.timeout = server.rstrip("/"), pause, timeout
        self.ready = 0.0  # when the next request may go, on the monotonic clock
        self.retry = _Waits(TRIES - 1, backoff_factor=pause, backoff_max=MAX_WAIT, retry_after_max=MAX_WAIT)
        self.session = requests.Session()
        self.session.headers["User-Agent"] = AGENT

    def get(self, path, query, problem) -> bytes:
        """The body of the first answer in which `problem(body)` finds nothing to complain of; else _Failed.

        Retry counts and waits here rather than in the session: to requests an answer is good that breaks off, is a page of
        HTML or another entry.
        """
        url = f"{self.server}/{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        retry, previous = self.retry, None
        while True:
            raw = None
            time.sleep(max(0.0, self.ready - time.monotonic()))
            try:
                with self._answer(url) as answer:
                    status = f"the server answered {answer.status_code} {answer.reason}"
                    raw = answer.raw
                    body = self._body(raw)
                if answer.ok:
                    failed = problem(body)
                    if failed is None:
                        return body
                    if body == previous:  # that is how it stands on the server; a page of HTML stands there for every entry
                        raise _Failed(failed, refused=body.lstrip().startswith(b"<"))
                    previous = body
                elif answer.status_code < 500 and answer.status_code != 429:
                    raise _Failed(status, refused=answer.status_code not in (404, 410))
                else:
                    failed = status
            except (requests.RequestException, HTTPError) as error:  # no connection, time-outs, broken answers
                failed = f"{url} gave no whole answer: {_cause(error)}"
            finally:
                self.ready = time.monotonic() + self.pause
            try:
                retry = retry.increment("GET", url, raw)
            except MaxRetryError:
                raise _Failed(failed, refused=True) from None
            retry.sleep(raw)


    def _answer(self, url):
        """To a request, redirected on the same server alone: who is asked for a file shall not have us ask anybody else."""
        for _ in range(MAX_REDIRECTS):
            answer = self.session.get(url, timeout=self.timeout, stream=True, allow_redirects=False)
            if not answer.is_redirect:
                return answer
            answer.close()
            old, url = urlsplit(url), urljoin(url, answer.headers["location"])
            if urlsplit(url).hostname != old.hostname or urlsplit(url).scheme not in ("https", old.scheme):
                raise _Failed(f"the server redirects to {url[:200]}, which is not asked", refused=True)
        raise _Failed(f"the server redirects more than {MAX_REDIRECTS} times", refused=True)

    def _body(self, raw):
        """All of an answer, as far as it is no larger and takes no longer than that of any server in its senses."""
        parts, size, end = [], 0, time.monotonic() + MOST_WAITS * self.timeout
        while part := raw.read1(2**20, decode_content=True):
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise _Failed(f"the answer has more than {MAX_BYTES / 1e6:g} MB", refused=False)
            if time.monotonic() > end:
                raise _Failed(f"the answer was not whole after {MOST_WAITS * self.timeout:g} s", refused=True)
        return b"".join(parts)


def _cause(error):
    """What went wrong at the bottom of an error of requests, in words."""
    while error.__context__:
        error = error.__context__
    if isinstance(error, IncompleteRead):
        return f"{error.partial} of {error.partial + error.expected} bytes came"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
