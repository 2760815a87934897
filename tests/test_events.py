"""A split query gives what one unlimited query would; a service that changes its mind is caught."""

import csv
import hashlib
import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scibench_data.errors import IntegrityError, SpaceError
from scibench_data.getting import events
from scibench_data.getting.events import Catalogue, fetch_events, query_fault
from scibench_data.net.guard import Refusal
from scibench_data.net.web import Web

COLUMNS = (  # noqa: SIM905  (it reads as the USGS writes it)
    "time,latitude,longitude,depth,mag,magType,nst,gap,dmin,rms,net,id,updated,place,type,"
    "horizontalError,depthError,magError,magNst,status,locationSource,magSource"
).split(",")
START = datetime(1992, 6, 28)
Event = tuple[datetime, str, str]


def row(event: Event) -> str:
    """Write an event as the USGS does."""
    time, name, place = event
    fields = dict.fromkeys(COLUMNS, "")
    fields |= {"time": f"{time.isoformat(timespec='milliseconds')}Z", "id": name, "place": place}
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(fields.values())
    return line.getvalue().removesuffix("\n")


@dataclass
class Service:
    """A service as the specification describes it, with the USGS's limit and ``count``."""

    catalogue: list[Event]
    limit: int
    step: timedelta = timedelta(microseconds=1)  # to which it rounds times down
    newline: str = "\n"
    asked: list[str] = field(default_factory=list)
    before_query: Callable[["Service"], None] | None = None

    def answer(self, target: str) -> tuple[int, bytes]:
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.asked.append(target)
        start, end = self._round(query["starttime"]), self._round(query["endtime"])
        found = [event for event in self.catalogue if start <= event[0] <= end]
        if parts.path.endswith("/count"):
            assert "format" not in query
            return 200, str(len(found)).encode()
        assert query["format"] == "csv"
        assert query["orderby"] == "time-asc"
        if self.before_query:
            change, self.before_query = self.before_query, None
            change(self)
            return self.answer(target)
        if len(found) > self.limit:
            return 400, f"{len(found)} matching events exceeds search limit".encode()
        if not found:
            return 204, b""
        lines = [",".join(COLUMNS), *map(row, sorted(found, key=lambda event: event[0]))]
        return 200, "".join(line + self.newline for line in lines).encode()

    def _round(self, text: str) -> datetime:
        return START + (datetime.fromisoformat(text) - START) // self.step * self.step


class Asking:
    """Asks a service of this process without a socket, as `Web.read` would over one."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def read(self, url: str, limit: int) -> bytes:
        status, body = self.service.answer(url)
        assert status in {200, 204}, body
        assert len(body) <= limit
        return body


QUERY = "https://earthquake.example.org/fdsnws/event/1/query?format=csv&minmagnitude=1"
YEAR = f"{QUERY}&starttime=1992-06-28&endtime=1993-06-28"


def fetched(service: Service, folder: Path, url: str = YEAR) -> bytes:
    """Fetch a query and look at what every result must fulfil."""
    target = folder / f"{len(list(folder.iterdir()))}.csv"
    ticks: list[int] = []
    made = fetch_events(
        Asking(service),  # type: ignore[arg-type]
        url,
        target,
        ticks.append,
        limit=service.limit,
    )
    content = target.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert made == Catalogue(len(service.catalogue), len(content), digest, len(service.asked))
    assert sum(ticks) == len(content)
    assert b"\r" not in content
    return content


def refused(service: Service, folder: Path, url: str = YEAR) -> str:
    """Fetch in vain; nothing may be left."""
    with pytest.raises(IntegrityError) as caught:
        fetched(service, folder, url)
    assert not list(folder.iterdir())
    return str(caught.value)


def some(count: int, apart: timedelta = timedelta(hours=1)) -> list[Event]:
    return [(START + i * apart, f"ci{i:06}", f"{i} km E of Landers, CA") for i in range(count)]


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.fixture
def over_http() -> Iterator[Callable[[Service], str]]:
    """Return a function that puts a service on a port of this machine and gives its URL."""
    servers = []

    def serve(service: Service) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = service.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/fdsnws/event/1/query"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_fifty_thousand_events_come_in_answers_of_at_most_twenty_thousand(
    over_http: Callable[[Service], str], tmp_path: Path
) -> None:
    minutes = timedelta(minutes=7)
    catalogue = [
        (START + i // 10 * minutes, f"ci{i * 7919 % 55_000:05}", "10 km SE of Ridgecrest, CA")
        for i in range(55_000)
    ]
    service = Service(catalogue, events.LIMIT)
    url = f"{over_http(service)}?format=csv&starttime=1992-06-28&endtime=1993-06-28"

    with Web(allowed_hosts=["127.0.0.1"]) as web:
        with pytest.raises(Refusal, match="400"):
            web.read(url + "&orderby=time-asc", 10**8)
        made = fetch_events(web, url, tmp_path / "x.csv")

    content = (tmp_path / "x.csv").read_text()
    expected = [row(event) for event in sorted(catalogue)]
    assert content.split("\n") == [",".join(COLUMNS), *expected, ""]
    assert made.events == 55_000
    assert made.answers < 25


# --- the property ---------------------------------------------------------------------------------

instants = st.one_of(
    st.integers(0, 20).map(lambda s: START + timedelta(seconds=s)),
    st.integers(0, 50_000).map(lambda ms: START + timedelta(milliseconds=ms)),
    st.integers(0, 365 * 86_400).map(lambda s: START + timedelta(seconds=s)),
)
places = st.sampled_from(["", "Landers, CA", '6 km "N" of Baker', "Île d'Oléron", "two\nlines"])


@st.composite
def catalogues(draw: st.DrawFn) -> list[Event]:
    times = draw(st.lists(instants, min_size=1, max_size=60))
    names = draw(st.permutations(range(len(times))))
    return [(t, f"us{n:04}", draw(places)) for t, n in zip(times, names, strict=True)]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    catalogue=catalogues(),
    spare=st.integers(0, 20),
    step=st.sampled_from([1, 1000, 1_000_000]),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_any_limit_gives_the_csv_of_one_unlimited_query(
    tmp_path_factory: pytest.TempPathFactory,
    catalogue: list[Event],
    spare: int,
    step: int,
    newline: str,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    rounding = timedelta(microseconds=step)
    catalogue = [
        (START + (t - START) // rounding * rounding, name, place) for t, name, place in catalogue
    ]
    crowd = max(Counter(time for time, _, _ in catalogue).values())

    whole = fetched(Service(catalogue, 10**6, rounding), folder)
    split = fetched(Service(catalogue, crowd + spare, rounding, newline), folder)

    assert split == whole
    rows = list(csv.DictReader(io.StringIO(whole.decode(), newline="")))
    assert [r["id"] for r in rows] == [name for _, name, _ in sorted(catalogue)]


# --- the ends -------------------------------------------------------------------------------------


def test_both_ends_belong_to_a_query_and_zones_are_heeded(tmp_path: Path) -> None:
    service = Service(some(5), 2)
    url = f"{QUERY}&start=1992-06-28T02:00:00%2B02:00&end=1992-06-28T04:00:00Z"

    rows = fetched(service, tmp_path, url).splitlines()

    assert len(rows) == 6
    assert all("minmagnitude=1" in asked for asked in service.asked)


def test_a_service_that_knows_whole_seconds_only_gives_no_event_twice(tmp_path: Path) -> None:
    service = Service(some(20, timedelta(seconds=1)), 3, step=timedelta(seconds=1))

    rows = fetched(service, tmp_path).decode().splitlines()[1:]

    assert rows == [row(event) for event in service.catalogue]
    queries = [parse_qs(urlsplit(asked).query) for asked in service.asked]
    assert not [query for query in queries if "." in query["endtime"][0]]


def test_a_query_that_fits_is_asked_once(tmp_path: Path) -> None:
    service = Service(some(5), 5)

    fetched(service, tmp_path)

    assert [urlsplit(asked).path.rpartition("/")[2] for asked in service.asked] == [
        "count",
        "query",
    ]


def test_empty_stretches_are_not_asked_for(tmp_path: Path) -> None:
    late = [(START + timedelta(days=360), f"us{i}", "") for i in range(3)]
    service = Service([*some(3), *late], 3)

    fetched(service, tmp_path)

    assert sum("/query?" in asked for asked in service.asked) == 2


def test_no_event_at_all_is_an_error(tmp_path: Path) -> None:
    assert "no event fits the query" in refused(Service([], 5), tmp_path)


def test_an_instant_with_too_many_events_is_an_error(tmp_path: Path) -> None:
    crowd = [(START + timedelta(days=9, microseconds=1000), f"us{i}", "") for i in range(6)]

    said = refused(Service([*some(3), *crowd], 5), tmp_path)

    assert "6 events at 1992-07-07T00:00:00.001000 alone, and it gives 5 at once" in said


# --- a service that changes its mind --------------------------------------------------------------


def lose(service: Service) -> None:
    service.catalogue.pop()


def revise(service: Service) -> None:
    """Move the first event to the end, as a better location may."""
    service.catalogue.append((START + timedelta(days=300), *service.catalogue.pop(0)[1:]))


@pytest.mark.parametrize(("change", "limit"), [(lose, 20), (lose, 5), (revise, 5)])
def test_a_catalogue_that_changes_meanwhile_is_refused(
    tmp_path: Path, change: Callable[[Service], None], limit: int
) -> None:
    said = refused(Service(some(20), limit, before_query=change), tmp_path)

    assert "the catalogue changed meanwhile, run the same command again" in said


class Told:
    """Gives what it was told to, whatever it is asked."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers

    def read(self, *_: object) -> bytes:
        return self.answers.pop(0)


def answers(*given: bytes) -> Told:
    """Give the same answers to whoever asks."""
    return Told(list(given))


HEADER = b"time,id\n"
ONE, TWO = b"1992-06-28T00:00:00.000Z,ci1\n", b"1992-06-29T00:00:00.000Z,ci2\n"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([b"<html>"], "expected a number of events, got '<html>'"),
        ([b""], "expected a number of events"),
        ([b"2", b""], "expected a CSV with the columns 'time' and 'id', got ''"),
        ([b"2", b"<html>"], "expected a CSV"),
        ([b"2", HEADER], "0 events came and 2 were counted"),
        ([b"2", HEADER + ONE + ONE], "twice in one answer"),
        ([b"1", HEADER + b"1992-06-28T00:00:00.000Z\n"], "not a row of the catalogue"),
        ([b"1", HEADER + b"yesterday,ci1\n"], "not a row of the catalogue"),
        ([b"1", HEADER + b'"1992-06-28T00:00:00.000Z,ci1\n'], "not CSV"),
        ([b"1", HEADER + b"1992-06-28,\xff\n"], "not CSV"),
        ([b"6", b"3", HEADER + ONE, b"3", HEADER + TWO], "1 events came and 3 were counted"),
        ([b"6", b"1", HEADER + TWO, b"1", HEADER + ONE], "'ci1' came later than its time"),
        ([b"6", b"1", HEADER + ONE, b"1", b"time,id,x\n"], "its columns are others"),
        ([b"6", b"1", HEADER + ONE, b"1", HEADER + TWO], "2 events came and 6 were counted"),
    ],
)
def test_bad_answers_are_told_and_nothing_is_kept(
    tmp_path: Path, given: list[bytes], why: str
) -> None:
    with pytest.raises(IntegrityError) as caught:
        fetch_events(answers(*given), YEAR, tmp_path / "x.csv", limit=5)  # type: ignore[arg-type]

    assert why in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_is_already_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"mine")

    with pytest.raises(FileExistsError):
        fetch_events(answers(b"1", HEADER + ONE), YEAR, tmp_path / "x.csv")  # type: ignore[arg-type]

    assert (tmp_path / "x.csv").read_bytes() == b"mine"


def test_a_disk_that_refuses_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(SpaceError, match="Not a directory"):
        fetch_events(answers(b"1", HEADER + ONE), YEAR, tmp_path / "file" / "x.csv")  # type: ignore[arg-type]


# --- queries --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("/query", "/count"), "ends in /query"),
        (("format=csv", "format=geojson"), "without format=csv"),
        (("format=csv&", ""), "without format=csv"),
        (("minmagnitude=1", "limit=5"), "'limit'"),
        (("minmagnitude=1", "orderby=magnitude"), "order"),
        (("minmagnitude=1", "endtime=1994-01-01"), "twice"),
        (("minmagnitude=1", "end=1994-01-01"), "without an endtime"),
        (("&endtime=1993-06-28", ""), "without an endtime"),
        (("starttime=1992-06-28", "starttime=1992"), "ISO 8601"),
        (("starttime=1992-06-28", "starttime=1999-06-28"), "ends before it starts"),
        (("https://earthquake.example.org", "https://[x"), "not the URL"),
    ],
)
def test_a_query_that_cannot_be_split_is_told(change: tuple[str, str], why: str) -> None:
    assert query_fault(YEAR) is None
    assert query_fault(YEAR.replace(*change)) is not None
    assert why in str(query_fault(YEAR.replace(*change)))
