"""A checksum within a .pt file, and what tells a damaged file from a whole one.

torch.load compares no checksum: most files with a wrong byte load as other weights. A .pt file is a
zip archive, and such an archive may end with a comment. `sealed` puts there `weaver-sha256:` and
the SHA-256, in hexadecimal, of all bytes before the comment; one file stays one file, written in
one go, which torch and weaver-core read as ever. Of a file without that comment, as weaver-core and
earlier versions write it, the CRC-32 of each of the archive's members is compared.
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


def sealed(content: bytes) -> bytes:
    """The content of a .pt file that torch.save made, with its checksum."""
    if content[-END : -END + 4] != END_MARK or content[-2:] != b"\0\0":
        raise ValueError("no zip archive without a comment")
    bare = content[:-2] + struct.pack("<H", COMMENT)
    return bare + _comment(bare)


def _comment(bare: bytes) -> bytes:
    return TAG + hashlib.sha256(bare).hexdigest().encode()


def damage(content: bytes) -> str:
    """What is wrong with the content of a .pt file; empty for nothing."""
    if content[-COMMENT:-64] == TAG:
        bare = content[:-COMMENT]
        return "" if content == bare + _comment(bare) else "its checksum does not fit"
    if not content.startswith(b"PK"):
        # torch.save made no archives before version 1.6
        return "" if content.startswith(b"\x80") else "it is no file of torch.save"
    if content[-END : -END + 4] != END_MARK or content[-2:] != b"\0\0":
        return "its end is missing or damaged"
    return _damaged_member(content)


def _damaged_member(content: bytes) -> str:
    """As `damage`, for an archive without our comment."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch can leave the checksums out; all of them are then one that fits nothing
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
