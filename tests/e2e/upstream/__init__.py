r"""A hostile upstream registry on 127.0.0.1, for tests with real sockets.

It speaks the pull side of the distribution protocol rightly, unless a rule says otherwise. A test waits for what it
needs, it does not sleep. Leaving the `async with` drops every connection and leaves no task, socket or warning behind.

Start, and where it is:
    async with FakeRegistry() as upstream: ...            # FakeRegistry(tls=ssl_context, name="localhost")
    upstream.url, upstream.host                           # "http://127.0.0.1:4711", "127.0.0.1:4711"
    await upstream.go_down(); upstream.come_back()        # refuses connections, later listens on the same port
    await upstream.hang_up()                              # drops the open connections

Content, per repository:
    digest = upstream.add_blob("library/app", b"...")     # or algorithm="sha512", or digest=<a persistent lie>
    digest = upstream.add_manifest("library/app", {...} or b"...", OCI_MANIFEST, tags=["v1"])
    image = upstream.add_image("library/app", "v1", [b"layer", b"layer"])   # more fields: subject={"digest": ...}
    image.digest, image.config_digest, image.layer_digests, image.blob_digests, image.sizes[digest], image.body
    index = upstream.add_index("library/app", "v1", [image, other])         # index.digest, index.images, index.body
    upstream.tag("library/app", "v1", digest); upstream.untag("library/app", "v1")
    upstream.remove("library/app", digest)
    upstream.require_accept()                             # 404 unless Accept lists the stored type (ghcr.io)

What happened:
    upstream.requests                                     # Requests, in order; (method, target, path, decoded_path,
    request.header("Accept"), request.lines("Accept")     #   query, headers, body, form, at, connection)
    upstream.count("GET", path_contains="/blobs/"); upstream.matching("GET", path_contains="/blobs/")
    upstream.body_bytes_sent, upstream.body_bytes_by_path[path], upstream.body_bytes_sent_for("/blobs/")
    upstream.connections, upstream.open_connections, upstream.in_flight
    await upstream.seen(2, method="GET", path_contains="/blobs/")           # waits until they have arrived
    await upstream.until(lambda: upstream.open_connections == 0)            # waits for any condition on it

Rules: `upstream.on(...)` picks requests; each call after it adds a behaviour. The first rule with times left has the
request, alone. Requests that authentication refuses are left alone unless `unauthorized=True`.
    rule = upstream.on("GET", repo="library/app", blob=digest, manifest="v1 or digest", path="/token",
                       path_contains="/tags/", where=lambda request: ..., times=1, skip=1, unauthorized=False)
    rule.applied; rule.stop(); upstream.forget_rules()
  What is said:
    rule.status(429, [("Retry-After", "7")], b"body")     # an OCI error when no body is given
    rule.body(b"other")                                   # another body, well framed, under the true headers
    rule.wrong_bytes()                                    # one byte flipped, same length; at=n picks it
    rule.resized(-1)                                      # a byte less (more: +1), Content-Length agrees
    rule.longer(by=1); rule.shorter(by=1)                 # than Content-Length says; shorter ends with FIN
    rule.ignore_range()                                   # 200 and everything to a Range
    rule.wrong_content_range("bytes 0-1/*")               # one byte off unless told
    rule.different_body_on_range()                        # as many, but other, bytes to a Range
    rule.redirect("http://h/a%2Fb/../c?sig=%7E", 302)     # byte for byte; or a function of the request
    rule.lying_digest("sha256:..."); rule.no_digest()     # Docker-Content-Digest
    rule.content_type("text/html"); rule.no_content_type()
    rule.content_encoding_gzip()                          # asked for or not
    rule.set_cookie("a=b"); rule.extra_headers(("X", "1\x00\x1b"), ("X", "2"))
    rule.set_header("Link", "<...>"); rule.set_header("Content-Length", "10000000000"); rule.drop_headers("ETag")
    rule.raw(b"HTTP/1.1 200 OK\r\n...")                   # exactly these bytes
    rule.then(behaviour)                                  # a callable (Reply, Asked) -> Reply of your own
  How it is framed:
    rule.no_content_length()                              # ended by the close
    rule.chunked(size=1000)
    rule.chunked_truncated(after=1500, size=1000)         # inside a chunk unless on its end, then FIN
    rule.trailing(b"garbage")                             # right behind the answer
  How it ends (after so many bytes of this answer's body):
    rule.truncate(after=1000)                             # FIN
    rule.reset(after=1000)                                # RST, once the client has them; reset(): before the head
    rule.close_without_answer()                           # FIN before the first byte
  How it is held; these give a handle, so they come last in a chain (a rule may have several):
    gate = rule.gate(after=1000)                          # after so many bytes of the body; 0: after the head
    gate = rule.stall(after=1000)                         # the same, by the name for one never opened
    gate = rule.hang()                                    # before the head
    gate = rule.second_response(b"poison")                # when opened: a response on the then idle connection
    await gate.reached.wait(); gate.open()                # release() is open(); gate.arrivals
    await gate.sent.wait(); await gate.abandoned.wait()   # the answer is out; the client left at the gate
    steps = rule.drip(bytes_per_step=100)                 # or every=0.01 for a pace of its own
    steps = rule.slow_headers(bytes_per_step=1)
    steps.step(3); steps.open(); await steps.waiting.wait()
  Combined:
    gate = upstream.on("GET", blob=digest, times=1).wrong_bytes().chunked(100).truncate(after=2000).gate(after=1000)

Authentication:
    upstream.require_bearer(realm=None, service="fake", scope_placeholder=False, users={"ann": "pw"}, expires_in=300,
                            token_key="token", anonymous=True, grants={None: [], "ann": ["library/app"]}, post=False)
    upstream.token_requests                               # (request, service, scopes, authorization, user, status)
    upstream.revoke_all()                                 # every token so far: 401 invalid_token
    upstream.require_basic({"ann": "pw"}); upstream.require_nothing()
    upstream.on("GET", path="/token", times=1).status(503)                  # the token endpoint misbehaves too
    upstream.on(unauthorized=True).status(401, [("WWW-Authenticate", 'Bearer realm="http://evil/"')])

Storage, an object store behind the registry (it has requests, on(), seen() ... as well):
    async with Storage() as storage: ...
    upstream.redirect_blobs_to(storage)                   # GETs get a freshly signed URL each; HEADs are answered
    url = storage.put("/bucket/a%2Fb/../%7Ec", data)      # raw path kept; the URL is good for GET, unchanged
    storage.sign("/bucket/x", "HEAD"), storage.sign_target("/bucket/x")     # absolute; without scheme and host
    storage.expire(url); storage.expire_all()             # 403 from now on; later signatures are good
    storage.targets                                       # request targets byte for byte

Canary, a port nobody may connect to:
    async with Canary() as canary: ...
    canary.url, canary.host, canary.connections == 0      # the backlog included
    canary.received[1]; await canary.came.wait()          # bytes by connection
"""

from .behaviours import Asked, Behaviour
from .canary import Canary
from .content import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Image,
    Index,
    Manifest,
    descriptor,
    digest_of,
)
from .gates import Gate, Steps
from .registry import FakeRegistry
from .reply import Reply
from .rules import Rule
from .storage import Storage
from .wire import Request

__all__ = [
    "OCI_CONFIG",
    "OCI_INDEX",
    "OCI_LAYER",
    "OCI_MANIFEST",
    "Asked",
    "Behaviour",
    "Canary",
    "FakeRegistry",
    "Gate",
    "Image",
    "Index",
    "Manifest",
    "Reply",
    "Request",
    "Rule",
    "Steps",
    "Storage",
    "descriptor",
    "digest_of",
]
