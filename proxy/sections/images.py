"""Which images are brought in every so often, and which are to go."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from proxy.values import File, Platforms, PolicyText, RepositoryPatterns, Seconds, Section


class Warm(Section):
    """Images that are brought in every so often, and how long they are kept each time (seconds; None: as any other)."""

    images: Annotated[tuple[str, ...], Field(strict=False)] = ()
    file: File | None = None
    platforms: Platforms = ()
    every: Annotated[Seconds, Field(ge=60)] = 24 * 3600.0
    keep: Annotated[Seconds, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if not self.images and self.file is None:
            raise ValueError("names no images: give images, or a file of them")
        if self.keep is not None and self.keep <= self.every:
            raise ValueError("keep is no longer than every: the pin would end before the next round renews it")
        return self


class Lifecycle(Section):
    """Which images of some repositories are to go, by a policy in ECR's grammar; that of a file is read with it."""

    repositories: RepositoryPatterns
    policy: PolicyText | None = None
    policy_file: File | None = None

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if (self.policy is None) == (self.policy_file is None):
            raise ValueError("needs one of policy, which is JSON, and policy_file")
        return self
