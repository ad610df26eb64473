"""Where the cache is: the directory, and the bucket behind it."""

from typing import Annotated, Literal, Self

from platformdirs import user_cache_path
from pydantic import Field, model_validator

from proxy.values import (
    AwsAccount,
    BucketName,
    Bytes,
    File,
    Networks,
    Prefix,
    Seconds,
    Section,
    StorageClassName,
    check_url,
)


class StorageClass(Section):
    """Which class of storage objects of at least so many bytes go to."""

    name: StorageClassName
    min_size: Bytes = 0


class S3(Section):
    """The bucket that outlives this machine, and that replicas share."""

    bucket: BucketName
    prefix: Prefix = ""
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_file: File | None = None
    expected_bucket_owner: AwsAccount | None = None
    encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    storage_class: Annotated[tuple[StorageClass, ...], Field(strict=False)] = ()
    checksums: Literal["when_required", "when_supported"] = "when_required"
    redirect_networks: Networks = ()
    redirect_for: Annotated[Seconds, Field(ge=1, le=3600)] = 60.0
    redirect_endpoint_url: str | None = None
    keep_unused: Annotated[Seconds, Field(ge=2 * 86400)] | None = None
    max_size: Bytes = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for key in ("endpoint_url", "redirect_endpoint_url"):
            if getattr(self, key) is not None:
                check_url(getattr(self, key), key)
        stray = sorted({"redirect_for", "redirect_endpoint_url"} & self.model_fields_set)
        if stray and not self.redirect_networks:
            raise ValueError(f"{stray[0]} goes with redirect_networks, which says whom to redirect")
        if self.kms_key_id is not None and (self.encryption is None or not self.encryption.startswith("aws:kms")):
            raise ValueError('kms_key_id goes with encryption = "aws:kms" or "aws:kms:dsse" only')
        # The first that fits counts: the largest least size first.
        ordered = tuple(sorted(self.storage_class, key=lambda rule: -rule.min_size))
        return self if ordered == self.storage_class else self.model_copy(update={"storage_class": ordered})


class Store(Section):
    """Where the cache is, how large it may grow (bytes; 0: no limit), and how it is looked after (bytes a second)."""

    path: File = Field(default_factory=lambda: user_cache_path("entrepot"))
    max_size: Bytes = 100 * 1024**3
    min_free: Bytes = 1024**3
    keep_deleted: bool = True
    scrub_rate: Bytes = 10_000_000
    scrub_interval: Annotated[Seconds, Field(gt=0)] = 30 * 86400.0
    verify_on_read: bool = False
    lifecycle_interval: Annotated[Seconds, Field(ge=60)] = 3600.0
    s3: S3 | None = None
