"""An S3 service on a port of this machine, in memory, that knows one user's access key."""

import contextlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

BUCKET = "datasets"
KEY, SECRET = "AKIAPUBLISHER0000000", "a-secret-that-no-message-may-show"
_CREDENTIAL = re.compile(r"Credential=([^/%&]*)")


@dataclass
class ObjectServer:
    """A running service with one bucket, private at first.

    Attributes
    ----------
    endpoint
        Its URL.
    client
        boto3's, with the rights to do everything.
    public
        Buckets that everyone may list.
    requests
        Method and path of every request.
    """

    endpoint: str = ""
    client: Any = None
    public: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def url(self, key: str = "", bucket: str = BUCKET) -> str:
        """Return the source string of an object."""
        return f"s3+{self.endpoint}/{bucket}/{key}"

    def publish(self, bucket: str = BUCKET) -> None:
        """Let everyone list and read a bucket."""
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
        }
        policy = {"Version": "2012-10-17", "Statement": [statement]}
        self.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        self.public.add(bucket)

    def fill(self, contents: dict[str, bytes], bucket: str = BUCKET) -> None:
        """Put many small objects at once, not over HTTP."""
        from moto.s3.models import s3_backends

        backend = s3_backends["123456789012"]["aws"]
        for key, content in contents.items():
            backend.put_object(bucket, key, content)


def _refusal(server: ObjectServer, environ: dict[str, Any]) -> str:
    """Return S3's code for what moto lets through: any credentials, and listings for anyone."""
    said = f"{environ.get('HTTP_AUTHORIZATION', '')} {environ.get('QUERY_STRING', '')}"
    keys = _CREDENTIAL.findall(said)
    if any(key != KEY for key in keys):
        return "InvalidAccessKeyId"
    bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
    return "" if keys or key or bucket in {*server.public, "nothing"} else "AccessDenied"


def _guarded(server: ObjectServer, app: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        server.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if code := _refusal(server, environ):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code></Error>".encode()]
        answered: Iterable[bytes] = app(environ, start)
        return answered

    return answer


@contextlib.contextmanager
def object_server() -> Iterator[ObjectServer]:
    """Run a service; what it holds is gone at the end."""
    import boto3
    from moto.moto_api._internal.models import moto_api_backend
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ObjectServer()
    app = _guarded(server, DomainDispatcherApplication(create_backend_app))
    listening = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        server.endpoint = f"http://127.0.0.1:{listening.server_port}"
        session = boto3.Session(KEY, SECRET, region_name="us-east-1")
        server.client = session.client("s3", endpoint_url=server.endpoint)
        server.client.create_bucket(Bucket=BUCKET)
        server.requests.clear()
        yield server
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
        moto_api_backend.reset()
