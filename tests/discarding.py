"""A spool that is dropped slowly, so that others can get in between."""

import threading

from proxy.files import Tree


class Discarding:
    """A disk that takes its time to drop a spool: `begun`, then waits for `go_on`; `outcomes` says how each ended."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.outcomes: list[str] = []
        self._discard = Tree._discard_spool

    def discard(self, tree: Tree, key: str, fd: int) -> None:
        """Instead of the tree's own."""
        self.begun.set()
        self.go_on.wait()
        try:
            self._discard(tree, key, fd)
        except OSError as error:
            self.outcomes.append(str(error))
        else:
            self.outcomes.append("dropped")
