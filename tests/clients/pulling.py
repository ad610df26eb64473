"""What every client is asked to do: pull through the proxy, forget everything, and pull again without upstream."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from .entrepot import Entrepot
from .images import Image
from .registries import Upstreams


class Client(Protocol):
    """A client with a store of its own."""

    def pull(self, name: str) -> str:
        """Pull an image by name; returns the digest that the client knows it by."""
        ...

    def run(self, name: str) -> str:
        """Run a pulled image; returns what it prints."""
        ...


class Scene:
    """The proxy between its upstreams and a client; `empty` makes a client that has nothing yet."""

    def __init__(self, proxy: Entrepot, upstreams: Upstreams) -> None:
        self.proxy = proxy
        self.upstreams = upstreams

    def pulls_cold_and_again_without_upstream(
        self, empty: Callable[[], AbstractContextManager[Client]], image: Image, name: str, agent: str
    ) -> None:
        """Pull and run an image by `name`, twice from nothing: the second time the cache is all there is."""
        self._pulls(empty, image, name, agent)
        downloads = self.upstreams.of(image).downloads(image)
        assert set(downloads.values()) == {1}, f"transferred more than once: {downloads}"
        with self.upstreams.stopped():
            self._pulls(empty, image, name, agent)

    def _pulls(self, empty: Callable[[], AbstractContextManager[Client]], image: Image, name: str, agent: str) -> None:
        with empty() as client, self.proxy.serves(image.pulled, agent):
            assert client.pull(name) == image.digest
            assert client.run(name) == image.says
