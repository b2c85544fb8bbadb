"""Recognises files by their first bytes: Git LFS pointers, saved web pages, formats with the wrong suffix."""

import re
from pathlib import Path

from data.mesh import MeshError

# Enough for the first element of a web page after its comments, and for a comment on top of an OBJ.
HEAD_BYTES = 4096

# Git LFS specification, version 1, and the names that the project had before.
_LFS = ("version https://git-lfs.", "version https://hawser.", "version http://git-media.")
_COMMENTS = re.compile(r"(?:\s|<!--.*?-->|<\?.*?\?>)*", re.DOTALL)
_HTML = re.compile(r"<(?:!doctype\s+html|html|head|body|title|meta|script|center|h1)[\s>]", re.IGNORECASE)
# Storage services answer with XML: <Error><Code>AccessDenied</Code>…
_XML_ERROR = re.compile(r"<error[\s>]", re.IGNORECASE)
# Whole bodies of GitHub's and Hugging Face's error replies.
_ERROR_TEXTS = ("404: not found", "entry not found", "not found", "invalid username or password.")

_OBJ_WORDS = {b"v", b"vn", b"vt", b"o", b"g", b"f", b"s", b"mtllib", b"usemtl"}
_FOREIGN = (
    (b"Kaydara FBX Binary", "an FBX file"),
    (b"; FBX", "an FBX file"),
    (b"BLENDER", "a Blender file"),
    (b"PXR-USDC", "a USD file"),
    (b"#usda", "a USD file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
)


def stand_in(head: bytes) -> str | None:
    """What stands in a file's place, and the fix, as "<what>; <fix>"; None for anything else.

    `head`: the first `HEAD_BYTES` of the file. Recognised: a Git LFS pointer, an HTML page, and the error
    replies of storage services, in UTF-8 or UTF-16.
    """
    utf16 = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = head.decode("utf-16" if utf16 else "utf-8-sig", "replace").lstrip()
    if text.startswith(_LFS):
        return "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
    start = text[_COMMENTS.match(text).end() :] if text.startswith("<") else ""  # type: ignore[union-attr]
    if _HTML.match(start):
        return "this is an HTML page, not the file itself; download the raw file again"
    if _XML_ERROR.match(start) or (len(head) < 200 and text.strip().casefold() in _ERROR_TEXTS):
        return "this is a server's error reply, not the file itself; download the file again"
    return None


def stand_in_at(path: str | Path) -> str | None:
    """`stand_in` of a file, as "<path>: <what>; <fix>". OSError if it cannot be opened."""
    found = stand_in(read_head(path))
    return None if found is None else f"{path}: {found}"


def refuse_stand_in(path: str | Path, head: bytes | None = None) -> None:
    """Raise MeshError if the file at `path` is a stand-in (see `stand_in`); `head` saves reading it."""
    found = stand_in(read_head(path) if head is None else head[:HEAD_BYTES])
    if found is not None:
        raise MeshError(f"{path}: {found}")


def read_head(path: str | Path) -> bytes:
    """The first `HEAD_BYTES` of a file. OSError if it cannot be opened."""
    with Path(path).open("rb") as file:
        return file.read(HEAD_BYTES)


def mesh_suffix(path: Path, head: bytes) -> str:
    """The suffix of a mesh file's real format, whatever it is called: ".glb", ".gltf", ".obj", ….

    `head`: the first `HEAD_BYTES` of the file. Falls back to the suffix in lower case: STL has no reliable
    signature, and damaged files are reported by the reader of the format they claim to be. Raises MeshError
    for a stand-in, and for an FBX, Blender or USD file or an archive under another name.
    """
    refuse_stand_in(path, head)
    claimed = path.suffix.lower()
    for signature, what in _FOREIGN:
        if head.startswith(signature):
            fix = "unpack it" if what.endswith("archive") else "convert it to GLB, for example with Blender"
            raise MeshError(f"{path}: this is {what} under another name; {fix}")
    if head.startswith(b"glTF"):
        return ".glb"
    if re.match(rb"ply\r?\n", head):
        return ".ply"
    if re.match(rb"(ST)?C?N?4?n?OFF\s", head):
        return ".off"
    if re.match(rb'(\xef\xbb\xbf)?\s*\{\s*"', head):
        return ".gltf"
    if re.match(rb"\s*solid\b.*\r?\n\s*facet\s+normal\s", head):
        return ".stl"
    if _starts_as_obj(head):
        return ".obj"
    return claimed


def _starts_as_obj(head: bytes) -> bool:
    """Whether the first complete line that is neither blank nor a comment is one of an OBJ."""
    if b"\0" in head:  # binary: a line of a binary STL's header may say anything
        return False
    lines = (line.split() for line in head.splitlines()[:-1])
    return next((words[0] in _OBJ_WORDS for words in lines if words and words[0][:1] != b"#"), False)
