"""An HTTP/1.1 server that answers rightly, unless a rule says otherwise."""

import ssl
from collections.abc import Callable

from .behaviours import Asked
from .deliver import Dispatch
from .journal import Journal
from .listener import Listener
from .peer import Peer
from .reply import Reply, oci_error
from .rules import Match, Rule
from .wire import BadRequestError, Request, read_request


class FakeServer(Journal, Listener):
    """Records requests, answers them one after the other on each connection, applies the test's rules."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, name: str = "127.0.0.1") -> None:
        Journal.__init__(self)
        Listener.__init__(self, tls=tls, name=name)
        self._rules: list[Rule] = []

    def on(
        self,
        method: str | None = None,
        *,
        path: str | None = None,
        path_contains: str | None = None,
        repo: str | None = None,
        blob: str | None = None,
        manifest: str | None = None,
        where: Callable[[Request], bool] | None = None,
        times: int | None = None,
        skip: int = 0,
        unauthorized: bool = False,
    ) -> Rule:
        """Script the answers to some requests. The first rule with times left has the request, alone.

        `skip` lets so many matching requests pass first; a request that authentication refuses
        is left alone, unless `unauthorized`.
        """
        match = Match(method, path, path_contains, repo, blob, manifest, where, unauthorized)
        rule = Rule(match, times, skip)
        self._rules.append(rule)
        return rule

    def forget_rules(self) -> None:
        """Answer everything rightly from now on; answers under way keep their rule."""
        self._rules.clear()

    def refusal(self, request: Request) -> Reply | None:
        """The answer to a request that may not be made, or None."""
        return None

    def answer(self, request: Request) -> Reply:
        """The right answer to a request that may be made."""
        return oci_error(404, "NAME_UNKNOWN")

    def changed(self) -> None:
        """Let everyone who waits look again."""
        Journal.changed(self)

    async def serve(self, peer: Peer) -> None:
        """Answer the requests of one connection, in order."""
        try:
            while (request := await read_request(peer.reader, peer.number)) is not None:
                if not await self._exchange(request, peer) or request.closes:
                    return await peer.finish()
        except BadRequestError as error:
            refusal = Reply(400, body=str(error).encode("latin-1", "replace"))
            await Dispatch(refusal, peer, bodiless=False, count=lambda _: None).run()
        return await peer.finish()

    async def _exchange(self, request: Request, peer: Peer) -> bool:
        self._record(request)
        reply = self._reply(request)
        self.in_flight += 1
        try:
            bodiless = request.method == "HEAD"
            return await Dispatch(reply, peer, bodiless, lambda size: self._sent(request.path, size)).run()
        finally:
            self.in_flight -= 1
            self.changed()

    def _reply(self, request: Request) -> Reply:
        refusal = self.refusal(request)
        reply = self.answer(request) if refusal is None else refusal
        for rule in self._rules:
            if rule.takes(request, refused=refusal is not None):
                return rule.apply(reply, Asked(request, self.answer))
        return reply
