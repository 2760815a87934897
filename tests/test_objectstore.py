"""Public and private buckets are listed, read and filled; no message shows a secret."""

import base64
import hashlib
import os
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from objectserver import BUCKET, KEY, SECRET, ObjectServer, object_server

from scibench_data.errors import LicenceError, NetworkError, ScibenchError, UsageError
from scibench_data.net import objectstore, uploading
from scibench_data.net.objectstore import Entry, list_prefix, public_url, signed_url
from scibench_data.net.uploading import Uploaded, upload_tree
from scibench_data.net.web import Web

LOCAL = ("127.0.0.1",)


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start without any; a test gives itself some."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with object_server() as running:
        yield running


@pytest.fixture
def web() -> Iterator[Web]:
    with Web(allowed_hosts=LOCAL, delay=0.01) as opened:
        yield opened


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the user the right credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the user credentials that the service does not know."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG00000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files of several kinds, one of them linked as annexed files are."""
    folder = tmp_path / "tree"
    files = {
        "datapackage.json": b"{}",
        "a/é ü+&.csv": b"x,y\n",
        "a/b.tar.gz": b"\x1f\x8b",
        "a/empty.bin": b"",
        ".git/annex/objects/xx/data": b"annexed",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "a/data.h5").symlink_to("../.git/annex/objects/xx/data")
    return folder


def plain_get(url: str) -> tuple[int, bytes]:
    """Ask as anyone may."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def told(error: pytest.ExceptionInfo[ScibenchError]) -> str:
    """Return a message, which may hold no credentials."""
    text = str(error.value)
    for secret in (SECRET, KEY, "AKIAWRONG", "Signature", "X-Amz"):
        assert secret not in text
    return text


# --- downloading ----------------------------------------------------------------------------------


def test_an_object_of_a_public_bucket_is_there_for_everyone(
    server: ObjectServer, web: Web, tmp_path: Path
) -> None:
    server.fill({"a/é ü+&.csv": b"x,y\n"})
    server.publish()

    url = public_url(server.url("a/é ü+&.csv"))
    web.download(url, tmp_path / "x", size=4)

    assert url == f"{server.endpoint}/{BUCKET}/a/%C3%A9%20%C3%BC%2B%26.csv"
    assert (tmp_path / "x").read_bytes() == b"x,y\n"


def test_an_object_of_a_private_bucket_needs_a_signed_url(server: ObjectServer, own: None) -> None:
    server.fill({"a/x.csv": b"x,y\n"})
    signed = signed_url(server.url("a/x.csv"), 60)

    assert plain_get(public_url(server.url("a/x.csv")))[0] == 403
    assert plain_get(signed or "") == (200, b"x,y\n")
    assert SECRET not in (signed or "")
    assert "X-Amz-Expires=60" in (signed or "")


def test_without_credentials_there_is_no_signed_url(
    request: pytest.FixtureRequest,
) -> None:
    assert signed_url("s3+https://s3.example.org/b/k") is None

    request.getfixturevalue("own")

    assert signed_url("s3+https://s3.example.org/b/k") is not None


def test_a_profile_has_credentials_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ObjectServer
) -> None:
    keys = f"aws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"
    (tmp_path / "credentials").write_text(f"[data]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "data")
    server.fill({"x": b"x"})

    assert plain_get(signed_url(server.url("x")) or "") == (200, b"x")


def test_a_profile_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    with pytest.raises(LicenceError, match=r"ProfileNotFound\); correct AWS_PROFILE"):
        signed_url("s3+https://s3.example.org/b/k")


def test_half_of_the_credentials_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)

    with pytest.raises(LicenceError, match="PartialCredentials") as caught:
        signed_url("s3+https://s3.example.org/b/k")

    told(caught)


def test_the_services_of_cloud_machines_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://127.0.0.1:9/credentials")

    assert signed_url("s3+https://s3.example.org/b/k") is None  # a connection would be an error


def test_a_bucket_of_amazon_is_signed_for_its_own_region(own: None) -> None:
    signed = signed_url("s3+https://s3.eu-west-2.amazonaws.com/bucket/key")

    assert "%2Feu-west-2%2Fs3%2Faws4_request" in (signed or "")
    assert (signed or "").startswith("https://s3.eu-west-2.amazonaws.com/bucket/key?")


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/key",
        "s3+https:///bucket/key",
        "s3+https://s3.example.org",
        "s3+https://s3.example.org/bucket",
        "s3+https://s3.example.org/bucket/",
        "s3+https://me:hidden@s3.example.org/bucket/key",
        "s3+https://s3.example.org/bucket/key?X-Amz-Signature=hidden",
        "s3+https://s3.example.org:port/bucket/key",
        "s3+https://[x/bucket/key",
        "s3+file:///etc/passwd",
    ],
)
def test_what_names_no_object_is_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        public_url(url)

    assert "hidden" not in str(caught.value)


def test_boto3_is_not_loaded_before_something_is_signed() -> None:
    code = (
        "import sys\nfrom scibench_data.net import objectstore, uploading\n"
        "objectstore.public_url('s3+https://s3.example.org/b/k')\n"
        "assert not {'boto3', 'botocore', 'urllib3'} & sys.modules.keys()"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


# --- listing --------------------------------------------------------------------------------------


def test_a_public_folder_is_listed_page_after_page(server: ObjectServer, web: Web) -> None:
    contents = {f"ms/ds1/{i:05}é +&%<.npz": bytes(i % 7) for i in range(2100)}
    server.fill({**contents, "ms/ds1/folder/": b"", "ms/ds1a/x": b"x", "ms/ds1": b"x"})
    server.publish()

    server.requests.clear()
    entries = list(list_prefix(web, server.url("ms/ds1")))

    assert [(e.key, e.bytes) for e in entries] == [(k, len(c)) for k, c in contents.items()]
    assert entries[1].etag == hashlib.md5(b"\0", usedforsecurity=False).hexdigest()
    assert server.requests == [f"GET /{BUCKET}"] * 3


def test_a_whole_bucket_is_listed(server: ObjectServer, web: Web) -> None:
    server.fill({"x": b"x", "a/y": b"y"})
    server.publish()

    assert [entry.key for entry in list_prefix(web, server.url())] == ["a/y", "x"]


def test_a_private_folder_is_listed_with_the_users_credentials(
    server: ObjectServer, web: Web, own: None
) -> None:
    server.fill({f"a/{i:04} ü": b"x" for i in range(1500)})

    entries = list(list_prefix(web, server.url("a")))

    assert [entry.key for entry in entries] == [f"a/{i:04} ü" for i in range(1500)]


@pytest.mark.parametrize("prefix", ["nothing", ""])
def test_an_empty_listing_is_an_error(server: ObjectServer, web: Web, prefix: str) -> None:
    server.publish()

    with pytest.raises(NetworkError, match="no object lies there; check the bucket"):
        list(list_prefix(web, server.url(prefix)))


def test_a_private_folder_without_credentials_says_what_to_set(
    server: ObjectServer, web: Web
) -> None:
    with pytest.raises(LicenceError, match="no credentials were found to try: set AWS_") as caught:
        list(list_prefix(web, server.url("a")))

    assert caught.value.exit_code == 7


def test_wrong_credentials_are_told_but_not_shown(
    server: ObjectServer, web: Web, wrong: None, tree: Path
) -> None:
    with pytest.raises(LicenceError, match="credentials in the environment") as listing:
        list(list_prefix(web, server.url("a")))
    with pytest.raises(LicenceError, match="credentials in the environment") as uploaded:
        upload_tree(tree, server.url("a"), allowed=LOCAL)

    told(listing)
    assert "InvalidAccessKeyId" in told(uploaded)


def test_a_public_bucket_never_sees_credentials(
    server: ObjectServer, web: Web, wrong: None
) -> None:
    server.fill({"x": b"x"})
    server.publish()

    assert [entry.key for entry in list_prefix(web, server.url())] == ["x"]


def test_a_bucket_that_is_not_there_is_told(
    server: ObjectServer, web: Web, own: None, tree: Path
) -> None:
    with pytest.raises(NetworkError, match="there is no such bucket"):
        list(list_prefix(web, server.url("a", "nothing")))
    with pytest.raises(NetworkError, match="there is no such bucket"):
        upload_tree(tree, server.url("a", "nothing"), allowed=LOCAL)


def test_too_many_objects_are_an_error(server: ObjectServer, web: Web) -> None:
    server.fill({"a": b"", "b": b""})
    server.publish()

    with pytest.raises(NetworkError, match="over 1 objects"):
        list(list_prefix(web, server.url(), most=1))


# --- endpoints that are none ----------------------------------------------------------------------

Answer = Callable[[str], tuple[int, dict[str, str], bytes]]


@pytest.fixture
def endpoint() -> Iterator[Callable[[Answer], str]]:
    """Return a function that starts a server which gives what it is told to."""
    servers = []

    def serve(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return f"s3+http://127.0.0.1:{server.server_port}/{BUCKET}/a"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


LISTING = "<ListBucketResult>{}</ListBucketResult>"
OBJECT = "<Contents><Key>{}</Key><Size>{}</Size></Contents>"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html><p>log in</html>",
        "<Error/>",
        "not XML",
        LISTING.format(OBJECT.format("", 1)),
        LISTING.format(OBJECT.format("a/x", -1)),
        LISTING.format(OBJECT.format("a/x", "many")),
        '<!DOCTYPE x [<!ENTITY a "aa">]>' + LISTING.format(OBJECT.format("&a;", 1)),
    ],
)
def test_what_is_no_listing_is_told(endpoint: Callable[[Answer], str], web: Web, body: str) -> None:
    with pytest.raises(NetworkError, match="check the endpoint"):
        list(list_prefix(web, endpoint(lambda _: (200, {}, body.encode()))))


def test_a_listing_without_end_is_given_up(
    endpoint: Callable[[Answer], str], web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "_MAX_PAGES", 5)
    page = LISTING.format("<NextContinuationToken>on</NextContinuationToken>").encode()

    with pytest.raises(NetworkError, match="does not end after 5 pages"):
        list(list_prefix(web, endpoint(lambda _: (200, {}, page))))


def test_a_service_that_does_not_encode_keys_is_understood(
    endpoint: Callable[[Answer], str], web: Web
) -> None:
    body = LISTING.format(OBJECT.format("a/100%25+.npz", 5)).encode()

    entries = list(list_prefix(web, endpoint(lambda _: (200, {}, body))))

    assert entries == [Entry("a/100%25+.npz", 5, "")]


@pytest.mark.parametrize("status", [301, 307])
def test_redirects_and_other_regions_are_not_followed(
    endpoint: Callable[[Answer], str],
    own: None,
    tree: Path,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    resolved: set[object] = set()
    resolve = socket.getaddrinfo

    def resolving(host: Any, *others: Any, **options: Any) -> Any:
        resolved.add(host)
        return resolve(host, *others, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolving)

    def elsewhere(path: str) -> tuple[int, dict[str, str], bytes]:
        asked.append(path)
        return 200, {}, LISTING.format("").encode()

    target = endpoint(elsewhere).removeprefix("s3+")
    error = (
        "<Error><Code>PermanentRedirect</Code><Endpoint>evil.example.org</Endpoint>"
        f"<Bucket>{BUCKET}</Bucket></Error>"
    )
    headers = {"Location": target, "x-amz-bucket-region": "eu-west-2"}

    with pytest.raises(NetworkError):
        upload_tree(tree, endpoint(lambda _: (status, headers, error.encode())), allowed=LOCAL)

    assert not asked
    assert resolved == {"127.0.0.1"}


def test_private_addresses_and_plain_http_are_refused_unless_allowed(
    own: None, tree: Path, web: Web
) -> None:
    for url, why in {
        "s3+https://127.0.0.1/b/k": "not a public one .127.0.0.1.; allow its host",
        "s3+https://[::1]/b/k": "not a public one",
        "s3+https://localhost/b/k": "not a public one",
        "s3+http://s3.example.org/b/k": "not encrypted; use s3.https",
    }.items():
        with pytest.raises(NetworkError, match=why):
            upload_tree(tree, url)
    with pytest.raises(NetworkError, match="not a public one"):
        list(list_prefix(web, "s3+https://[::1]/b/k"))


def test_an_endpoint_where_nothing_listens_is_told(own: None, tree: Path, web: Web) -> None:
    with pytest.raises(NetworkError, match=r"no S3 service answers there \(EndpointConnection"):
        upload_tree(tree, "s3+http://127.0.0.1:9/b/k", allowed=LOCAL)
    with pytest.raises(NetworkError, match="refused the connection"):
        list(list_prefix(web, "s3+http://127.0.0.1:9/b/k"))


# --- uploading ------------------------------------------------------------------------------------


def test_what_was_uploaded_is_there_for_everyone(
    server: ObjectServer, own: None, tree: Path, web: Web
) -> None:
    ticks: list[int] = []
    server.publish()

    done = upload_tree(tree, server.url("v1"), ticks.append, allowed=LOCAL)

    files = {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    assert len(files) == 6
    assert done == Uploaded(6, 0, sum(map(len, files.values())))
    assert sum(ticks) == done.bytes
    assert {e.key for e in list_prefix(web, server.url("v1"))} == {f"v1/{name}" for name in files}
    for name, content in files.items():
        assert plain_get(public_url(server.url(f"v1/{name}"))) == (200, content)


def test_media_types_are_those_of_the_names(server: ObjectServer, own: None, tree: Path) -> None:
    upload_tree(tree, server.url(), allowed=LOCAL)

    heads = {
        name: server.client.head_object(Bucket=BUCKET, Key=name)
        for name in ("datapackage.json", "a/b.tar.gz", "a/data.h5", "a/é ü+&.csv")
    }
    assert {name: head["ContentType"] for name, head in heads.items()} == {
        "datapackage.json": "application/json",
        "a/b.tar.gz": "application/gzip",
        "a/data.h5": "application/x-hdf5",
        "a/é ü+&.csv": "text/csv",
    }
    assert "ContentEncoding" not in heads["a/b.tar.gz"]
    assert heads["a/data.h5"]["Metadata"] == {"sha256": hashlib.sha256(b"annexed").hexdigest()}


def test_only_what_differs_is_uploaded_again(server: ObjectServer, own: None, tree: Path) -> None:
    upload_tree(tree, server.url("v1"), allowed=LOCAL)
    (tree / "datapackage.json").write_bytes(b"[]")
    ticks: list[int] = []

    done = upload_tree(tree, server.url("v1/"), ticks.append, allowed=LOCAL)

    assert done == Uploaded(1, 5, 2)
    assert sum(ticks) == sum(p.stat().st_size for p in tree.rglob("*") if p.is_file())
    read = server.client.get_object(Bucket=BUCKET, Key="v1/datapackage.json")["Body"].read()
    assert read == b"[]"


@pytest.mark.parametrize("length", [12 * 2**20, 10 * 2**20 + 1])
def test_big_files_go_in_parts_and_only_once(
    server: ObjectServer, own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(uploading, "PART", 5 * 2**20)
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "x.bin").write_bytes(os.urandom(length))
    ticks: list[int] = []

    first = upload_tree(folder, server.url(), ticks.append, allowed=LOCAL)
    second = upload_tree(folder, server.url(), allowed=LOCAL)
    monkeypatch.setattr(uploading, "PART", 16 * 2**20)
    third = upload_tree(folder, server.url(), allowed=LOCAL)  # now its ETag is of another kind

    assert (first, second, third) == (Uploaded(1, 0, length), *[Uploaded(0, 1, 0)] * 2)
    assert sum(ticks) == length
    stored = server.client.get_object(Bucket=BUCKET, Key="x.bin")
    assert stored["Body"].read() == (folder / "x.bin").read_bytes()
    assert stored["ETag"].endswith('-3"')


def test_a_part_that_fails_leaves_none_behind(
    server: ObjectServer, own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "PART", 5 * 2**20)
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "x.bin").write_bytes(bytes(11 * 2**20))

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_tree(folder, server.url(), stop, allowed=LOCAL)

    assert "Uploads" not in server.client.list_multipart_uploads(Bucket=BUCKET)
    assert server.client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_the_service_is_told_the_checksum(
    endpoint: Callable[[Answer], str], own: None, tree: Path
) -> None:
    bad = "<Error><Code>BadDigest</Code></Error>"

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (
            (200, {}, LISTING.format("").encode())
            if "list-type" in path
            else (
                400,
                {},
                bad.encode(),
            )
        )

    with pytest.raises(NetworkError, match=r"'BadDigest' \(400\)"):
        upload_tree(tree, endpoint(answer), allowed=LOCAL)


def test_links_that_lead_out_are_not_published(
    server: ObjectServer, own: None, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "private").write_bytes(b"private")
    for target in (tmp_path / "private", tmp_path, Path("nowhere")):
        (tree / "link").symlink_to(target)

        with pytest.raises(UsageError, match="link: a link that leads out"):
            upload_tree(tree, server.url(), allowed=LOCAL)

        (tree / "link").unlink()
    os.mkfifo(tree / "pipe")
    with pytest.raises(UsageError, match="no plain file"):
        upload_tree(tree, server.url(), allowed=LOCAL)
    assert server.client.list_objects_v2(Bucket=BUCKET)["KeyCount"] == 0


def test_nothing_is_published_without_credentials(server: ObjectServer, tree: Path) -> None:
    server.publish()

    with pytest.raises(LicenceError, match="no credentials were found"):
        upload_tree(tree, server.url(), allowed=LOCAL)


def test_a_private_bucket_of_others_is_told(
    endpoint: Callable[[Answer], str], own: None, tree: Path
) -> None:
    denied = b"<Error><Code>AccessDenied</Code><Message>secret</Message></Error>"

    with pytest.raises(LicenceError, match=r"access was denied \(AccessDenied\)") as caught:
        upload_tree(tree, endpoint(lambda _: (403, {}, denied)), allowed=LOCAL)

    assert base64.b64encode(b"secret").decode() not in told(caught)
