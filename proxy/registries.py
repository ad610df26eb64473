"""What is known of the world's registries: where each really is, what else it is called, who issues its tokens."""

import re
from collections.abc import Mapping
from typing import Any

# With no configuration these are the upstreams. What they ask for (challenges, scopes, redirects) is learnt from them.
PUBLIC: Mapping[str, Mapping[str, Any]] = {
    "docker.io": {
        "url": "https://registry-1.docker.io",
        "aliases": ["index.docker.io", "registry-1.docker.io"],
        "realm_hosts": ["auth.docker.io"],
    },
    "ghcr.io": {"url": "https://ghcr.io"},
    "quay.io": {"url": "https://quay.io"},
    "gcr.io": {"url": "https://gcr.io"},
    "registry.k8s.io": {"url": "https://registry.k8s.io"},
    "mcr.microsoft.com": {"url": "https://mcr.microsoft.com"},
    "public.ecr.aws": {"url": "https://public.ecr.aws"},
    "registry.gitlab.com": {"url": "https://registry.gitlab.com", "realm_hosts": ["gitlab.com"]},
    "nvcr.io": {"url": "https://nvcr.io", "realm_hosts": ["authn.nvidia.com"]},
}

# The host names of private ECR: with FIPS, in China, and the newer ones that have IPv6. Every pull needs a login.
ECR = re.compile(
    r"[0-9]{12}\.dkr(?:\.ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?"
    r"|-ecr(?:-fips)?\.(?P<newer>[a-z0-9-]+)\.on\.(?:aws|amazonwebservices\.com\.cn))"
)
_CLOUDS = re.compile(
    r"[a-z0-9]+\.azurecr\.(?:io|cn|us)"  # Azure
    r"|[a-z0-9-]+-docker\.pkg\.dev|docker\.pkg\.dev|(?:us|eu|asia)\.gcr\.io"  # Google
)


def known(registry: str) -> Mapping[str, Any]:
    """What need not be configured of a registry, as keys of its [[upstream]]; empty if nothing is known of it."""
    if registry in PUBLIC:
        return PUBLIC[registry]
    if ECR.fullmatch(registry):
        return {"url": f"https://{registry}", "account": [{"provider": "ecr"}]}
    return {"url": f"https://{registry}"} if _CLOUDS.fullmatch(registry) else {}


def ecr_region(registry: str) -> str | None:
    """The AWS region that the host name of a private ECR registry holds."""
    match = ECR.fullmatch(registry)
    return None if match is None else match["region"] or match["newer"]
