"""SCRAM-SHA-256-PLUS: a login that is bound to the TLS connection (RFC 5802, RFC 5929, RFC 7677). Pure: no I/O.

asyncpg logs in by SCRAM-SHA-256 alone. Where `channel_binding=require` is asked for, this does the exchange: whoever
stands between us and the server with a certificate of its own cannot hand it on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import stringprep
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MECHANISM = b"SCRAM-SHA-256-PLUS"
_HEADER = b"p=tls-server-end-point,,"
_ITERATIONS_MAX = 10_000_000
# The DER of the object identifiers of signatures, and the hash of each (RFC 5929, 4.1: MD5 and SHA-1 become SHA-256).
_RSA, _ECDSA = bytes.fromhex("2a864886f70d0101"), bytes.fromhex("2a8648ce3d0403")
_HASHES = {
    **dict.fromkeys((_RSA + b"\x04", _RSA + b"\x05", _RSA + b"\x0b", bytes.fromhex("2a8648ce3d0401")), "sha256"),
    **dict(zip((_RSA + b"\x0e", _RSA + b"\x0c", _RSA + b"\x0d"), ("sha224", "sha384", "sha512"), strict=True)),
    **{_ECDSA + bytes([n]): name for n, name in enumerate(("sha224", "sha256", "sha384", "sha512"), start=1)},
}
_PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


class ScramError(Exception):
    """The exchange cannot go on, or the server has not proved that it knows the password."""


class Exchange:
    """One exchange: `first()` is sent, the server's answer goes to `final()`, whose result is sent, then `check()`."""

    def __init__(self, password: str, certificate: bytes, *, nonce: str | None = None) -> None:
        self._password = _prepared(password).encode()
        self._binding = hashlib.new(_hash_of_signature(certificate), certificate).digest()
        self._bare = f"n=,r={nonce or secrets.token_urlsafe(18)}"
        self._signature = b""

    def first(self) -> bytes:
        """The client's first message."""
        return _HEADER + self._bare.encode()

    def final(self, answer: bytes) -> bytes:
        """The client's last message, for the server's first one."""
        fields = _fields(answer)
        nonce, own = fields.get("r", ""), self._bare.partition(",r=")[2]
        try:
            salt, rounds = base64.b64decode(fields["s"], validate=True), int(fields["i"])
        except (KeyError, ValueError) as error:
            raise ScramError("the server's answer is not part of SCRAM") from error
        if not nonce.startswith(own) or len(nonce) <= len(own) or not 0 < rounds <= _ITERATIONS_MAX:
            raise ScramError("the server's answer is not part of SCRAM")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, rounds)
        bound = base64.b64encode(_HEADER + self._binding).decode()
        without_proof = f"c={bound},r={nonce}"
        signed = b",".join((self._bare.encode(), answer, without_proof.encode()))
        client_key = _mac(salted, b"Client Key")
        proof = bytes(a ^ b for a, b in zip(client_key, _mac(hashlib.sha256(client_key).digest(), signed), strict=True))
        self._signature = _mac(_mac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def check(self, answer: bytes) -> None:
        """Raise ScramError unless the server has proved that it knows the password, too."""
        try:
            given = base64.b64decode(_fields(answer)["v"], validate=True)
        except (KeyError, ValueError) as error:
            raise ScramError("the server did not prove that it knows the password") from error
        if not self._signature or not hmac.compare_digest(given, self._signature):
            raise ScramError("the server did not prove that it knows the password")


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, "sha256").digest()


def _fields(message: bytes) -> dict[str, str]:
    pairs = message.decode("utf-8", "replace").split(",")
    return {name: value for name, equals, value in (pair.partition("=") for pair in pairs) if equals}


def _prepared(password: str) -> str:
    """SASLprep (RFC 4013); what it does not allow is taken as it is, as Postgres does."""
    if password.isascii():
        return password
    mapped = "".join(" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    normal = unicodedata.normalize("NFKC", mapped)
    if not normal or any(test(c) for c in normal for test in _PROHIBITED):
        return password
    if any(map(stringprep.in_table_d1, normal)):
        ends = stringprep.in_table_d1(normal[0]) and stringprep.in_table_d1(normal[-1])
        if not ends or any(map(stringprep.in_table_d2, normal)):
            return password
    return normal


def _hash_of_signature(certificate: bytes) -> str:
    """The name of the hash that the certificate's signature uses: of three DER elements the second (RFC 5280, 4.1)."""
    try:
        inside, _ = _element(certificate)
        _, rest = _element(inside)
        algorithm, _ = _element(rest)
        identifier, _ = _element(algorithm)
        return _HASHES[identifier]
    except (IndexError, KeyError) as error:
        raise ScramError("channel binding has no rule for the signature of the server's certificate") from error


def _element(der: bytes) -> tuple[bytes, bytes]:
    """The content of the first element, and what comes after it."""
    length, start = der[1], 2
    if length & 0x80:
        start = 2 + (length & 0x7F)
        length = int.from_bytes(der[2:start], "big")
    return der[start : start + length], der[start + length :]
