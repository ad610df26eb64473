"""Lists of images: names alone, parts that were recorded, and what is no such line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.oci import imagelist
from proxy.oci.digest import Digest
from proxy.oci.imagelist import Wish

ONE, TWO = Digest.of(b"one"), Digest.of(b"two")
NAMES = st.sampled_from(["docker.io/library/app", "localhost:5000/a/b", "ghcr.io/acme/app"])
WISHES = st.builds(
    lambda name, tag, digest, part: Wish(f"{name}{tag}@{digest}", part),
    NAMES, st.sampled_from(["", ":v1"]), st.sampled_from([ONE, TWO]), st.sampled_from(["manifest", "blob"]),
)  # fmt: skip


def test_a_name_alone_is_an_image_and_a_comment_is_nothing() -> None:
    text = f"# what we need\n\nnginx:1.27  # the web\n  app@{ONE}\napp:v1@{ONE}  manifest # index\napp@{TWO}\tblob\n"
    assert imagelist.parse(text) == [
        Wish("nginx:1.27"), Wish(f"app@{ONE}"), Wish(f"app:v1@{ONE}", "manifest"), Wish(f"app@{TWO}", "blob"),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["nginx latest", "nginx manifest", f"app@{ONE} layer", f"app@{ONE} blob blob"])
def test_a_line_that_is_none_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2: write an image alone"):
        imagelist.parse(f"nginx\n{line}\n")


@given(st.sets(WISHES))
def test_what_is_written_is_read_again(wishes: set[Wish]) -> None:
    body = imagelist.write("title", wishes, {str(ONE): "linux/amd64"}).decode()
    found = imagelist.parse(body)
    assert (set(found), len(found)) == (wishes, len(wishes))
    assert body.startswith("# title\n")


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = imagelist.parse(text)
    except ValueError:
        found = []
    assert all(wish.name for wish in found)


def test_a_name_is_split_at_its_tag_and_its_digest_and_not_at_a_port() -> None:
    assert imagelist.split("localhost:5000/a") == ("localhost:5000/a", None, None)
    assert imagelist.split(f"localhost:5000/a:v1@{ONE}") == ("localhost:5000/a", "v1", str(ONE))
    assert imagelist.split(f"a@{ONE}") == ("a", None, str(ONE))
