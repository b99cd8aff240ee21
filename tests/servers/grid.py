"""An authority, a host's certificate and proxies of a user, as XRootD's GSI login has them."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

# RFC 3820's ProxyCertInfo with the policy id-ppl-inheritAll, in DER
PROXY_INFO = x509.UnrecognizedExtension(
    x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14"),
    bytes.fromhex("300c300a06082b06010505071501"),
)
POLICY = """\
access_id_CA X509 '/O=test/CN=authority'
pos_rights globus CA:sign
cond_subjects globus '"/O=test/*"'
"""


class Grid:
    """The files of an authority in a folder; they live for two days at most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificates = folder / "certificates"
        self.certificates.mkdir()
        self._authority = self._certificate(["authority"], None, authority=True)
        (folder / "authority.pem").write_bytes(_pem(self._authority[0]))
        digest = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", folder / "authority.pem"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        shutil.copy(folder / "authority.pem", self.certificates / f"{digest}.0")
        (self.certificates / f"{digest}.signing_policy").write_text(POLICY)
        self._user = self._certificate(["me"], self._authority)

    def host(self) -> tuple[Path, Path]:
        """Certificate and key of localhost."""
        certificate, key = self._certificate(["localhost"], self._authority)
        paths = self.folder / "host.pem", self.folder / "host.key"
        paths[0].write_bytes(_pem(certificate))
        paths[1].write_bytes(_key(key))
        paths[1].chmod(0o400)
        return paths

    def proxy(self, path: Path, hours: float) -> Path:
        """A proxy of the user's that ends in so many hours, written to a file of mode 0600."""
        certificate, key = self._certificate(["me", "12345"], self._user, hours=hours)
        path.write_bytes(_pem(certificate) + _key(key) + _pem(self._user[0]))
        path.chmod(0o600)
        return path

    def _certificate(
        self,
        names: list[str],
        issuer: tuple[x509.Certificate, rsa.RSAPrivateKey] | None,
        *,
        hours: float = 48,
        authority: bool = False,
    ) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
        key = rsa.generate_private_key(65537, 2048)
        attributes = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "test")]
        attributes += [x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in names]
        subject = x509.Name(attributes)
        now = datetime.datetime.now(datetime.UTC)
        is_proxy = len(names) > 1
        unused = ("content_commitment", "data_encipherment", "key_agreement")
        usage = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(12345 if is_proxy else x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=24))
            .not_valid_after(now + datetime.timedelta(hours=hours))
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_encipherment=not authority,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    **usage,
                ),
                critical=True,
            )
        )
        if is_proxy:
            builder = builder.add_extension(PROXY_INFO, critical=True)
        else:
            builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
