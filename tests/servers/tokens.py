"""An issuer of bearer tokens (JSON web tokens of the WLCG), which XRootD's SciTokens plugin takes.

The plugin would fetch the issuer's key over https; here it finds it in its cache.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.servers.xrootd import SECONDS, own

ISSUER = "https://issuer.test"
AUDIENCE = "https://localhost"
PLUGIN = "libXrdAccSciTokens.so"
FOLDERS = ("/usr/lib", "/usr/lib64")
KEY = "key1"
STORE = """
import ctypes, sys
library = ctypes.CDLL("libSciTokens.so.0")
error = ctypes.c_char_p()
words = [word.encode() for word in sys.argv[1:4]]
if library.scitoken_store_public_ec_key(*words, ctypes.byref(error)):
    sys.exit(str(error.value))
"""


class Issuer:
    """A key, and the server's configuration that trusts it, in a folder."""

    def __init__(self, folder: Path) -> None:
        _need_plugin()
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        cache = folder / "cache"
        cache.mkdir()
        self.environment = {"XDG_CACHE_HOME": str(cache)}
        process = subprocess.run(
            [sys.executable, "-c", STORE, ISSUER, KEY, public.decode()],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        self.config = folder / "scitokens.cfg"
        self.config.write_text(
            f"[Global]\naudience = {AUDIENCE}\n[Issuer test]\nissuer = {ISSUER}\nbase_path = /\n"
        )
        own(self.config, cache, *cache.rglob("*"))

    def token(self, seconds: float, scope: str = "storage.read:/") -> str:
        """A token that ends in so many seconds."""
        now = time.time()
        head = {"alg": "ES256", "typ": "JWT", "kid": KEY}
        claims = {
            "iss": ISSUER,
            "sub": "me",
            "aud": AUDIENCE,
            "iat": int(now - 3600),
            "nbf": int(now - 3600),
            "exp": int(now + seconds),
            "scope": scope,
            "wlcg.ver": "1.0",
        }
        text = ".".join(_base64(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        numbers = utils.decode_dss_signature(signature)
        return f"{text}.{_base64(b''.join(number.to_bytes(32, 'big') for number in numbers))}"


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _need_plugin() -> None:
    """Skip the test where the server's plugin is not installed; with CI=true it fails."""
    name = PLUGIN.replace(".so", "-*.so")
    if any(True for folder in FOLDERS for _ in Path(folder).glob(f"**/{name}")):
        return
    missing = "there is no SciTokens plugin; type: apt-get install xrootd-scitokens-plugins"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)
