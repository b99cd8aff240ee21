"""Add a checksum to a .pt file, and check whether a .pt file is damaged.

torch.load checks no checksum, so that most files with a wrong byte load as other weights. A .pt
file is a zip archive, and such an archive may end with a comment. `add_checksum` writes there
`weaver-sha256:` and the SHA-256, in hexadecimal, of all bytes before the comment. torch and
weaver-core can still read the file. Files without such a comment, which weaver-core and earlier
versions write, are checked by the CRC-32 of the archive's members.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib

TAG = b"weaver-sha256:"
COMMENT = len(TAG) + 64  # bytes
END = 22  # bytes of the archive's last record without a comment
END_MARK = b"PK\x05\x06"


def add_checksum(content: bytes) -> bytes:
    """Add the checksum to the content of a .pt file of torch.save.

    Raises ValueError for content that is not a zip archive without a comment.
    """
    if content[-END : -END + 4] != END_MARK or content[-2:] != b"\0\0":
        raise ValueError("no zip archive without a comment")
    bare = content[:-2] + struct.pack("<H", COMMENT)
    return bare + _comment(bare)


def _comment(bare: bytes) -> bytes:
    return TAG + hashlib.sha256(bare).hexdigest().encode()


def damage(content: bytes) -> str:
    """Describe the damage to the content of a .pt file; empty without any."""
    if content[-COMMENT:-64] == TAG:
        bare = content[:-COMMENT]
        return "" if content == bare + _comment(bare) else "its checksum does not fit"
    if not content.startswith(b"PK"):
        # torch.save made no archives before version 1.6
        return "" if content.startswith(b"\x80") else "it is not a file of torch.save"
    if content[-END : -END + 4] != END_MARK or content[-2:] != b"\0\0":
        return "its end is missing or damaged"
    return _member_damage(content)


def _member_damage(content: bytes) -> str:
    """As `damage`, for an archive without our comment."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch can leave the checksums out; all members then have the same, wrong one
            if len({member.CRC for member in archive.infolist() if member.file_size}) == 1:
                return ""
            member = archive.testzip()
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        return f"it is damaged ({error})"
    return f"its part {member} is damaged" if member else ""
