"""How one request for a manifest is answered when it comes again: in the same words, by what memory says then."""

import time
from dataclasses import dataclass

from proxy.accesslog import Tally
from proxy.manifests import Manifests, Served
from proxy.oci.reference import Reference, Repository
from proxy.recorder import Recorder
from proxy.respond import Print

LARGEST = 64 * 1024  # bytes of a manifest that is sent without waiting for its client to take it


@dataclass(frozen=True, slots=True)
class Encore:
    """A `repeats.Again`: what was served, of what, and how it was put."""

    manifests: Manifests
    recorder: Recorder
    asked: tuple[Repository, Reference]
    served: Served
    print: Print
    tally: Tally

    @property
    def size(self) -> int:
        """Bytes that it takes to keep this: the manifest stays for it as well, whether it is sent or (HEAD) not."""
        return len(self.print.before) + len(self.print.after) + len(self.served.manifest.body)

    def __call__(self, client: str) -> bytes | None:
        """The answer; None where it would be another one, or somebody wants to know of each."""
        began = time.monotonic()
        if self.recorder.is_on or self.manifests.get_again(*self.asked) != self.served:
            return None
        answer = self.print.dated()
        self.tally.count(client, time.monotonic() - began)
        return answer
