"""One CSV out of an earthquake catalogue that gives its events only in parts.

A FDSN event service (FDSN Web Service Specifications 1.2, ``fdsnws-event``) answers a query of too
many events with an error; the USGS's, 20,000. So the query is split by time until no part has more.
The ``count`` method and ``format=csv`` are the USGS's own (https://earthquake.usgs.gov/fdsnws/event/1/)
and needed here. Whether the rows are the ones that a paper used, only a checksum can tell: a
catalogue is revised for years.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qsl, urlencode, urlsplit

from scibench_data import durable
from scibench_data.errors import IntegrityError

if TYPE_CHECKING:
    from scibench_data.net.web import Web

LIMIT = 20_000
"""Events that the USGS gives in one answer. [1]"""

_ROW = 4096  # a row has about 200 bytes [B]
_COUNT = 64  # an answer of `count` is one number [B]
_TICK = timedelta(microseconds=1)
_STARTS, _ENDS = ("starttime", "start"), ("endtime", "end")
_OURS = {"limit", "offset", "eventid", "callback", "jsonerror", "nodata"}


@dataclass(frozen=True)
class Catalogue:
    """What was written: events, size of the CSV [B], its SHA-256, and how many answers it took."""

    events: int
    bytes: int
    sha256: str
    answers: int


def query_fault(url: str) -> str | None:
    """Say why `url` is not a query that can be split by time into one CSV.

    Examples
    --------
    >>> query = "https://earthquake.usgs.gov/fdsnws/event/1/query?format=csv"
    >>> query_fault(f"{query}&starttime=1992-01-01&endtime=1993-01-01")
    >>> query_fault(f"{query}&starttime=1992-01-01")
    'an event query without an endtime: it would have no end'
    """
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        return "not the URL of an event query"
    names = [name for name, _ in pairs]
    query = dict(pairs)
    faults = {
        "not the URL of an event query, which ends in /query?...": parts.path[-6:] != "/query",
        "an event query with a parameter twice": len(names) != len(query),
        "an event query without format=csv": query.get("format") != "csv",
        "an event query in another order than time-asc": query.get("orderby", "time-asc")
        != "time-asc",
    }
    named = (f"an event query with {name!r}" for name in sorted(_OURS & query.keys()))
    return next((fault for fault, true in faults.items() if true), next(named, _time_fault(query)))


def _time_fault(query: Mapping[str, str]) -> str | None:
    ends = [_given(query, _STARTS), _given(query, _ENDS)]
    if not ends[0]:
        return "an event query without a starttime"
    if not ends[1]:
        return "an event query without an endtime: it would have no end"
    try:
        start, end = map(_instant, ends)
    except (ValueError, OverflowError):
        return "an event query with a time that is not ISO 8601"
    return "an event query that ends before it starts" if end < start else None


def _given(query: Mapping[str, str], names: tuple[str, ...]) -> str:
    values = [query[name] for name in names if name in query]
    return values[0] if len(values) == 1 else ""


def _instant(text: str) -> datetime:
    """Read a time as the specification does, where one without a zone is UTC; give it without."""
    read = datetime.fromisoformat(text)
    return read.astimezone(UTC).replace(tzinfo=None) if read.tzinfo else read


@dataclass(frozen=True)
class _Interval:
    """Both ends belong to it, as the specification says."""

    start: datetime
    end: datetime

    def halves(self) -> tuple["_Interval", "_Interval"]:
        """Split without a common instant: the second half begins a microsecond later.

        No catalogue keeps times finer than that. A service that rounds its ends down to whole
        milliseconds or seconds gives what lies at the border in both halves, never in neither.
        """
        middle = self.start + (self.end - self.start) // 2
        rounded = middle.replace(microsecond=0)
        middle = rounded if rounded > self.start else middle
        return _Interval(self.start, middle), _Interval(middle + _TICK, self.end)


@dataclass
class _Service:
    """A query of one service, over any interval."""

    web: "Web"
    url: str
    limit: int
    answers: int = 0

    def whole(self) -> _Interval:
        query = dict(parse_qsl(urlsplit(self.url).query))
        return _Interval(_instant(_given(query, _STARTS)), _instant(_given(query, _ENDS)))

    def count(self, interval: _Interval) -> int:
        """Ask how many events there are."""
        read = self._ask("count", interval, _COUNT).decode("ascii", "replace").strip()
        if not read.isdecimal():
            message = (
                f"{self.host}: expected a number of events, got {read!r}; "
                "the service must have the USGS's count method"
            )
            raise IntegrityError(message)
        return int(read)

    def rows(self, interval: _Interval, count: int) -> bytes:
        """Ask for the `count` events themselves."""
        return self._ask("query", interval, (count + 100) * _ROW)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def _ask(self, method: str, interval: _Interval, limit: int) -> bytes:
        parts = urlsplit(self.url)
        query = [(n, v) for n, v in parse_qsl(parts.query) if n not in {*_STARTS, *_ENDS}]
        names = {"orderby"} if method == "query" else {"orderby", "format"}
        query = [(name, value) for name, value in query if name not in names]
        query += [("starttime", _text(interval.start)), ("endtime", _text(interval.end))]
        query += [("orderby", "time-asc")] if method == "query" else []
        path = parts.path.removesuffix("query") + method
        self.answers += 1
        return self.web.read(parts._replace(path=path, query=urlencode(query)).geturl(), limit)


def _text(time: datetime) -> str:
    return time.isoformat()


def _parts(service: _Service, interval: _Interval, count: int) -> Iterator[tuple[_Interval, int]]:
    """Give intervals of at most as many events as the service answers with, in order of time."""
    if count <= service.limit:
        if count:
            yield interval, count
        return
    if interval.start == interval.end:
        message = (
            f"{service.host}: {count} events at {_text(interval.start)} alone, and it gives "
            f"{service.limit} at once; narrow the query by place or magnitude"
        )
        raise IntegrityError(message)
    for half in interval.halves():
        yield from _parts(service, half, service.count(half))


@dataclass
class _Table:
    """One CSV in the making: one header, rows in order of time, no event twice."""

    host: str
    file: BinaryIO
    tick: Callable[[int], None]
    header: str = ""
    place: tuple[int, int] = (0, 0)  # of the columns `time` and `id`
    known: set[str] = field(default_factory=set)
    latest: datetime = datetime.min
    size: int = 0  # [B]
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def fill(self, service: _Service, whole: _Interval, total: int) -> None:
        """Append the parts one after the other."""
        for interval, count in _parts(service, whole, total):
            self.add(service.rows(interval, count), count)
        if len(self.known) != total:
            why = f"{len(self.known)} events came and {total} were counted"
            raise _changed(self.host, why)

    def add(self, answer: bytes, count: int) -> None:
        """Append one answer, which should have `count` rows.

        Events of one instant come in the order of their ids: a service keeps none among them.
        """
        records = _records(self.host, answer)
        self._take_header(*next(records, ("", [])))
        rows = sorted(self._row(raw, fields) for raw, fields in records)
        if len(rows) != count:
            raise _changed(self.host, f"{len(rows)} events came and {count} were counted")
        new = [row for row in rows if row[1] not in self.known]
        if new and new[0][0] < self.latest:
            raise _changed(self.host, f"{new[0][1]!r} came later than its time")
        before = len(self.known)
        self.known.update(row[1] for row in new)
        if len(self.known) != before + len(new):
            raise _changed(self.host, "an event came twice in one answer")
        self.latest = new[-1][0] if new else self.latest
        self._write("".join(f"{raw}\n" for _, _, raw in new))

    def _take_header(self, raw: str, columns: list[str]) -> None:
        if self.header and raw != self.header:
            raise _changed(self.host, "its columns are others than a moment ago")
        if self.header:
            return
        if not {"time", "id"} <= set(columns):
            message = (
                f"{self.host}: expected a CSV with the columns 'time' and 'id', got {raw[:60]!r}; "
                "try the query in a browser"
            )
            raise IntegrityError(message)
        self.header, self.place = raw, (columns.index("time"), columns.index("id"))
        self._write(f"{raw}\n")

    def _row(self, raw: str, fields: list[str]) -> tuple[datetime, str, str]:
        try:
            return _instant(fields[self.place[0]]), fields[self.place[1]], raw
        except (ValueError, IndexError, OverflowError) as error:
            message = f"{self.host}: not a row of the catalogue: {raw[:60]!r}; try again later"
            raise IntegrityError(message) from error

    def _write(self, text: str) -> None:
        content = text.encode()
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)
        self.tick(len(content))


def _records(host: str, answer: bytes) -> Iterator[tuple[str, list[str]]]:
    """Give each record as it came, but for its line end, and its fields."""
    try:
        lines = answer.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        reader, start = csv.reader(lines, strict=True), 0
        for fields in reader:
            if fields:
                yield "\n".join(lines[start : reader.line_num]), fields
            start = reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        message = f"{host}: its answer is not CSV ({error}); try again later"
        raise IntegrityError(message) from error


def _changed(host: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{host}: {why}; the catalogue changed meanwhile, run the same command again"
    )


def fetch_events(
    web: "Web",
    url: str,
    target: Path,
    tick: Callable[[int], None] = lambda _: None,
    *,
    limit: int = LIMIT,
) -> Catalogue:
    """Write all events of a query into the new file `target`, in ascending order of time.

    The same answers give the same bytes, with any `limit`: UTF-8, lines end in LF, events of one
    instant in the order of their ids. When it fails, `target` is not there.

    Parameters
    ----------
    web
        Asks the service.
    url
        ``https://.../query?format=csv&starttime=...&endtime=...&...``; see `query_fault`.
    target
        A path that is still free, in a folder that exists.
    tick
        Told how many bytes were just written.
    limit
        Events that the service gives in one answer. [1]

    Raises
    ------
    IntegrityError
        There is no event; rows and counts differ, for the catalogue changed meanwhile; one instant
        alone has more than `limit` events; or what came is no CSV.
    Refusal
        The service can't be reached, or refuses; see `scibench_data.net.web`.
    FileExistsError
        `target` exists.
    SpaceError
        The disk refuses.
    """
    service = _Service(web, url, limit)
    whole = service.whole()
    total = service.count(whole)
    if not total:
        message = f"{service.host}: no event fits the query; check its times and bounds"
        raise IntegrityError(message)
    with durable.disk_errors(target):
        file = target.open("xb")
        try:
            with file:
                table = _Table(service.host, file, tick)
                table.fill(service, whole, total)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return Catalogue(total, table.size, table.digest.hexdigest(), service.answers)
