"""Certificates, and signed accounts and users, without the tools that usually mint them.

`certificates` makes an authority with a server and a client certificate. `Key`, `operator_jwt`,
`account_jwt`, `user_jwt` and `creds` are what `nsc` does
(https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt): an operator
signs accounts, an account signs users, and a server believes who can sign its nonce with the seed.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import json
import secrets
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nkeys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


# Certificates.
@dataclass(frozen=True)
class Certificates:
    """Files in PEM: an authority, and a certificate with its key for servers and one for a client."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """For `nats.connect(tls=…)`: trusts this authority alone; shows a certificate if `client`."""
        context = ssl.create_default_context(cafile=self.ca)
        if client:
            context.load_cert_chain(self.client, self.client_key)
        return context


def certificates(folder: Path, client: str = "client@natslab.example") -> Certificates:
    """A new authority in `folder` and what it signed; valid for a day.

    The server's certificate is for 127.0.0.1 and localhost, the client's for the e-mail address
    `client`. Python 3.13 verifies strictly: key usage and key identifiers are there for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, names = _Authority.new(), ("ca", "server", "server-key", "client", "client-key")
    files = Certificates(*(folder / f"{name}.pem" for name in names))
    files.ca.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    authority.issue(files.server, files.server_key, "natslab server", local)
    authority.issue(files.client, files.client_key, "natslab client", [x509.RFC822Name(client)])
    return files


@dataclass
class _Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> _Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("natslab authority")
        builder = _builder(name, name, key.public_key())
        builder = builder.add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(key, builder.sign(key, hashes.SHA256()))

    def issue(self, file: Path, key_file: Path, name: str, owner: list[x509.GeneralName]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self.certificate.subject, key.public_key())
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        both = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
        signed = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(by, critical=False)
            .add_extension(both, critical=False)
            .add_extension(x509.SubjectAlternativeName(owner), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key_file.touch(0o600)  # before there is a secret in it
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY)  # clocks differ
        .not_valid_after(now + DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# Signed accounts and users.
PREFIXES = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR,
    "account": nkeys.PREFIX_BYTE_ACCOUNT,
    "user": nkeys.PREFIX_BYTE_USER,
}
UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Key:
    """A new pair of keys of an operator, an account or a user; `seed` is the secret half."""

    def __init__(self, kind: Literal["operator", "account", "user"]) -> None:
        seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), PREFIXES[kind]))
        self.seed = seed.decode()
        self._pair = nkeys.from_seed(bytearray(seed))
        self.public: str = self._pair.public_key.decode()

    def sign(self, data: bytes) -> bytes:
        """The signature of `data`."""
        return bytes(self._pair.sign(data))


def mint(
    issuer: Key, subject: str, name: str, claims: dict[str, Any], expires: float | None = None
) -> str:
    """A JWT in which `issuer` says `claims` of the public key `subject`, until Unix time `expires`."""
    body = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "name": name,
        "sub": subject,
        "nats": {"version": 2, **claims},
    }
    if expires is not None:
        body["exp"] = int(expires)
    digest = hashlib.new("sha512_256", _json(body)).digest()
    body["jti"] = base64.b32encode(digest).rstrip(b"=").decode()
    head = _base64(_json({"typ": "JWT", "alg": "ed25519-nkey"}))
    signed = f"{head}.{_base64(_json(body))}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def operator_jwt(operator: Key, system: Key, name: str = "operator") -> str:
    """Who the operator is, and which account is the system's."""
    claims = {"type": "operator", "system_account": system.public}
    return mint(operator, operator.public, name, claims)


def account_jwt(
    operator: Key,
    account: Key,
    name: str,
    *,
    jetstream: bool = False,
    limits: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """An account; `more` are its exports, imports, signing_keys, revocations."""
    wide = {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
    allowed = UNLIMITED | wide | (JETSTREAM if jetstream else {}) | (limits or {})
    claims = {"type": "account", "limits": allowed, **more}
    return mint(operator, account.public, name, claims)


def user_jwt(
    account: Key,
    user: Key,
    name: str,
    *,
    publish: list[str] | None = None,
    subscribe: list[str] | None = None,
    expires: float | None = None,
) -> str:
    """A user of `account`. `publish` and `subscribe` are allowed subjects; None allows all.

    For nats-server an empty list of subjects allows all of them; here it allows none.
    """
    rights = {"pub": _allowed(publish), "sub": _allowed(subscribe)}
    return mint(account, user.public, name, {"type": "user", **UNLIMITED, **rights}, expires)


def _allowed(subjects: list[str] | None) -> dict[str, list[str]]:
    if subjects is None:
        return {}
    return {"allow": subjects} if subjects else {"deny": [">"]}


def creds(jwt: str, seed: str) -> str:
    """The text of a credentials file, for `nats.aio.client.RawCredentials` or a file with mode 600."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
