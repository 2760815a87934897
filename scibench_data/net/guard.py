"""Connections that go only where they may, at a pace that ends: addresses, schemes, proxies, TLS.

urllib3 speaks HTTP; here are the places where it is told less than it would accept. An address is
judged when it is connected to, so a name that changes its address in between gains nothing.
"""

import contextlib
import io
import ipaddress
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import unquote

from scibench_data.provenance import package_version

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool, PoolManager
    from urllib3.exceptions import HTTPError
    from urllib3.util import Url

SLOWEST = 1024.0
"""A server that sends less than this for as long as it may stall is given up. [B/s]"""

CONNECT = 10.0
"""How long one address may take to accept a connection. [s]"""

Kind = Literal["network", "integrity", "licence", "address"]


class Refusal(Exception):  # noqa: N818  (it isn't the end: the caller asks the next source)
    """One source did not give the file.

    Attributes
    ----------
    reason
        Why, in plain words, without any URL but those that the server sent on to.
    kind
        ``"network"``: it can't be had there now; ``"integrity"``: other bytes than were promised;
        ``"licence"``: it wants credentials or forbids; ``"address"``: it may not be asked at all.
    status
        Status code of the answer, 0 where there was none or it wasn't the matter.
    url
        The URL without user, query and fragment, which may hold secrets.
    """

    def __init__(self, reason: str, kind: Kind = "network", status: int = 0) -> None:
        super().__init__(reason)
        self.reason = plain(reason)
        self.kind = kind
        self.status = status
        self.url = ""

    def __str__(self) -> str:
        return f"{self.url}: {self.reason}" if self.url else self.reason


class Broken(Refusal):
    """A body or connection that broke off: the same server may well give the rest."""


def plain(text: str) -> str:
    """Drop what isn't printable: part of the text may come from a server."""
    kept = "".join(char if char.isprintable() else "�" for char in text)
    return kept if len(kept) <= 300 else kept[:299] + "…"


def shown(url: str) -> str:
    """Return a URL as it may appear in a message: without user, query and fragment.

    Examples
    --------
    >>> shown("https://me:secret@example.org/a.csv?key=secret#b")
    'https://example.org/a.csv'
    """
    bare = url.partition("#")[0].partition("?")[0]
    return plain(re.sub(r"//[^/\\]*@", "//", bare, count=1))


def words(number: float) -> str:
    """Write a number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


# --- which addresses may be asked -----------------------------------------------------------------

_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291 2.4; all else has a special use
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are IPv4
_NOT_PUBLIC = (
    ipaddress.ip_network("2002::/16"),  # 6to4, RFC 3056: leads to any IPv4 address
    ipaddress.ip_network("3fff::/20"),  # documentation, RFC 9637
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays, RFC 7526
)


def is_public(address: str) -> bool:
    """Tell whether a numeric address belongs to the public Internet.

    An IPv4 address inside an IPv6 one (mapped, or translated by NAT64) is judged itself.

    Examples
    --------
    >>> is_public("8.8.8.8"), is_public("::ffff:10.0.0.1"), is_public("64:ff9b::7f00:1")
    (True, False, False)
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped or found in _TRANSLATED:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        elif found not in _GLOBAL_UNICAST:
            return False
    special = any(found in network for network in _NOT_PUBLIC if network.version == found.version)
    return found.is_global and not found.is_multicast and not special


def _connect(
    host: str, port: int, options: Collection[tuple[int, int, int | bytes]], *, trusted: bool
) -> socket.socket:
    """Resolve once, judge every address, and connect to one of those that were judged.

    A name that is resolved again for the connection could have another address by then.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = "its host was not found"
        raise Refusal(reason) from error
    usable = [entry for entry in found if trusted or is_public(str(entry[4][0]))]
    if not usable:
        addresses = ", ".join(sorted({str(entry[4][0]) for entry in found}))
        reason = f"its address is not a public one ({addresses})"
        raise Refusal(reason, "address")
    failure = OSError()
    for family, kind, protocol, _, address in usable:
        try:
            return _connected(socket.socket(family, kind, protocol), address, options)
        except OSError as error:
            failure = error
    raise Refusal(_why_unreachable(failure)) from failure


def _connected(
    opened: socket.socket, address: object, options: Collection[tuple[int, int, int | bytes]]
) -> socket.socket:
    try:
        for level, name, value in options:
            opened.setsockopt(level, name, value)
        opened.settimeout(CONNECT)
        opened.connect(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except BaseException:
        opened.close()
        raise
    return opened


def _why_unreachable(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"its host did not answer within {CONNECT:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "its host refused the connection"
    return f"its host can't be reached ({error.strerror or error})"


def _refuse_own_names(host: str) -> None:
    """Refuse a host that a proxy would look for on its own machine or in its own network."""
    if host.rstrip(".").rpartition(".")[2] == "localhost":
        reason = "its address is not a public one (localhost)"
        raise Refusal(reason, "address")
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return  # a name: the proxy resolves it
    if not is_public(str(found[0][4][0])):
        reason = f"its address is not a public one ({found[0][4][0]})"
        raise Refusal(reason, "address")


# --- urllib3 with our connections -----------------------------------------------------------------


class _PaceError(TimeoutError):
    pass


class _Paced(io.RawIOBase):
    """The bytes of one answer; a server that only trickles is a timeout like one that is silent.

    A timeout of a socket counts anew with each byte; here the time that was spent waiting is set
    against all that came: status line, headers, chunk sizes and body alike. The wait for the first
    byte is free, the reader's own slowness too.
    """

    def __init__(self, raw: io.RawIOBase, stall: float) -> None:
        self._raw = raw
        self._stall = stall
        self._begun = False
        self._waited = 0.0
        self._came = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int | None:  # type: ignore[override]
        start = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        if self._begun:
            self._waited += time.monotonic() - start
        self._begun = True
        self._came += count or 0
        if self._waited >= self._stall:
            if count and self._came < SLOWEST * self._waited:
                raise _PaceError
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _pool_classes(
    trusted: Callable[[str], bool], stall: float, began: Callable[[socket.socket], None]
) -> "dict[str, type[HTTPConnectionPool]]":
    """Return urllib3's pools with connections that judge addresses and watch the pace."""
    import http.client

    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    class Answer(http.client.HTTPResponse):
        def __init__(
            self,
            sock: socket.socket,
            debuglevel: int = 0,
            method: str | None = None,
            url: str | None = None,
        ) -> None:
            super().__init__(sock, debuglevel, method, url)
            began(sock)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_Paced(raw, stall), 1 << 16)

    class Guarded(HTTPConnection):
        response_class = Answer

        def _new_conn(self) -> socket.socket:
            if self.proxy is not None:  # its own address may be private; the user chose it
                return super()._new_conn()
            options = self.socket_options or ()
            return _connect(self._dns_host, self.port, options, trusted=trusted(self.host))

    class GuardedTLS(Guarded, HTTPSConnection):
        pass

    class Pool(HTTPConnectionPool):
        ConnectionCls = Guarded

    class PoolTLS(HTTPSConnectionPool):
        ConnectionCls = GuardedTLS

    return {"http": Pool, "https": PoolTLS}


def network_refusal(error: "HTTPError") -> Refusal:
    """Say plainly what urllib3 means."""
    from urllib3 import exceptions as known

    if isinstance(error, known.ProxyError):
        return Refusal(f"the proxy could not be used ({error.original_error})")
    if isinstance(error, known.SSLError):
        cause = error.args[0]
        verdict = getattr(cause, "verify_message", "")
        if verdict:
            return Refusal(f"its certificate does not verify ({verdict})")
        return Refusal(f"no encrypted connection came about ({getattr(cause, 'reason', cause)})")
    if isinstance(error, known.TimeoutError):
        slow = isinstance(error.__cause__, _PaceError)
        return Refusal("the server sends too slowly" if slow else "the server fell silent")
    if isinstance(error, known.ProtocolError):
        return _protocol_refusal(error.args[-1])
    return Refusal("the server does not speak HTTP as it should")


def _protocol_refusal(cause: object) -> Refusal:
    import http.client

    if isinstance(cause, OSError | http.client.IncompleteRead):
        return Broken("the server broke the connection off")
    return Refusal("the server does not speak HTTP as it should")


class Connections:
    """Kept-alive connections to many hosts, shared by threads.

    Parameters
    ----------
    allowed_hosts
        Hosts, as written in URLs and without port, that may have private addresses and be asked
        without encryption.
    kept
        Connections kept open to each host. [1]
    stall
        How long a server may send nothing, or less than `SLOWEST`. [s]
    """

    def __init__(self, allowed_hosts: Collection[str], kept: int, stall: float) -> None:
        self._allowed = frozenset(host.strip("[]").rstrip(".").lower() for host in allowed_hosts)
        self._kept = kept
        self._stall = stall
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._pools: dict[tuple[str | None, str | None, int | None], HTTPConnectionPool] = {}
        self._proxies: dict[str, str] | None = None
        self._agent = f"scibench-data/{package_version()}"
        self.closed = threading.Event()

    def close(self) -> None:
        """Close all connections; a thread that still reads gets a `Refusal`."""
        self.closed.set()
        with self._lock:
            for pool in self._pools.values():
                pool.close()
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(one, socket.SHUT_RDWR)  # beneath TLS: wakes its reader

    def judged(self, text: str) -> "Url":
        """Return a URL as urllib3 will read it, if it may be asked at all.

        Raises
        ------
        Refusal
            It may not.
        """
        from urllib3.exceptions import LocationParseError
        from urllib3.util import parse_url

        try:
            url = parse_url(text)
        except LocationParseError as error:
            reason = "it is not a URL"
            raise Refusal(reason, "address") from error
        if fault := self._fault(url, text):
            raise Refusal(fault, "address")
        return url

    def _fault(self, url: "Url", text: str) -> str:
        if url.scheme not in {"http", "https"}:
            return "it is not an https URL"
        if not text.isprintable() or " " in text or not url.host:
            return "it is not a URL of a file on the web"
        if url.auth is not None:
            return "it names a user or password, which is not allowed in a URL"
        if url.scheme == "http" and not self._trusted(url.host):
            return "it is not encrypted: http is for allowed hosts only, use https"
        return ""

    def _trusted(self, host: str) -> bool:
        return host.strip("[]").rstrip(".").lower() in self._allowed

    def request(self, method: str, url: "Url", headers: Mapping[str, str]) -> "BaseHTTPResponse":
        """Ask once; return the answer with its body unread and as it is sent, redirects too.

        Raises
        ------
        Refusal
            There is no answer.
        """
        from urllib3.exceptions import HTTPError

        self.stop_if_closed()
        sent = {"User-Agent": self._agent, **headers, "Accept-Encoding": "identity"}
        pool = self._pool(url)
        try:
            return pool.urlopen(
                method,
                url.request_uri,
                headers=sent,
                retries=False,
                redirect=False,
                assert_same_host=False,
                preload_content=False,
                decode_content=False,
            )
        except HTTPError as error:
            self.stop_if_closed()
            raise network_refusal(error) from error

    def read(self, response: "BaseHTTPResponse", most: int) -> bytes:
        """Return what has arrived of a body, at least a byte, at most `most`; empty at its end.

        Raises
        ------
        Broken
            The body ended before its declared length.
        Refusal
            The server is silent or too slow, or the connections were closed.
        """
        from urllib3 import HTTPResponse
        from urllib3.exceptions import HTTPError

        try:
            block = cast("HTTPResponse", response).read1(most, decode_content=False)
        except HTTPError as error:
            self.stop_if_closed()
            raise network_refusal(error) from error
        self.stop_if_closed()
        return block

    def stop_if_closed(self) -> None:
        """Raise a `Refusal` once the connections are closed."""
        if self.closed.is_set():
            reason = "it was stopped"
            raise Refusal(reason)

    def _proxy(self, url: "Url") -> str:
        """Return the proxy that the environment names for a URL, or nothing."""
        if self._proxies is None:
            from urllib.request import getproxies_environment

            self._proxies = getproxies_environment()
        host = (url.host or "").strip("[]")
        proxy = self._proxies.get(url.scheme or "") or self._proxies.get("all", "")
        if not proxy or self._trusted(host) or self._bypassed(host):
            return ""
        _refuse_own_names(host)
        return proxy if "://" in proxy else f"http://{proxy}"

    def _bypassed(self, host: str) -> bool:
        from urllib import request

        # Not in typeshed; the function of the same name without "environment" may ask the system.
        bypass = cast("Callable[..., object]", vars(request)["proxy_bypass_environment"])
        return bool(bypass(host, self._proxies))

    def _pool(self, url: "Url") -> "HTTPConnectionPool":
        """Return the connections to the host of a URL.

        urllib3's managers find them too, but parse the URL anew for each request.
        """
        place = (url.scheme, url.host, url.port)
        pool = self._pools.get(place)
        if pool is None:
            proxy = self._proxy(url)
            with self._lock:
                self.stop_if_closed()
                pool = self._pools.get(place) or self._new_manager(
                    url.scheme, proxy
                ).connection_from_host(url.host, url.port, url.scheme)
                self._pools[place] = pool
        return pool

    def _new_manager(self, scheme: str | None, proxy: str) -> "PoolManager":
        import ssl

        import urllib3

        manager: PoolManager
        timeout = urllib3.Timeout(connect=min(CONNECT, self._stall), read=self._stall)
        # The system's trust, or SSL_CERT_FILE's; reading it takes longer than a small download.
        context = ssl.create_default_context() if scheme == "https" else None
        if proxy:
            try:
                auth = urllib3.util.parse_url(proxy).auth
                known = urllib3.util.make_headers(proxy_basic_auth=unquote(auth)) if auth else None
                manager = urllib3.ProxyManager(
                    proxy,
                    proxy_headers=known,
                    maxsize=self._kept,
                    timeout=timeout,
                    ssl_context=context,
                )
            except urllib3.exceptions.HTTPError as error:
                reason = f"the proxy {shown(proxy)} is not one that can be used: http or https only"
                raise Refusal(reason) from error
        else:
            manager = urllib3.PoolManager(maxsize=self._kept, timeout=timeout, ssl_context=context)
        manager.pool_classes_by_scheme = _pool_classes(self._trusted, self._stall, self._began)
        return manager

    def _began(self, used: socket.socket) -> None:
        with self._lock:
            self._sockets.add(used)
