"""The certificate and the private key with which recordings are signed."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

from letstalk_rt.errors import ConfigError, DependencyError
from letstalk_rt.extras import pip_install

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

ALGORITHM = "es256"
_HELP = "docs/deployment.md says how to make a certificate."


@dataclass(frozen=True, slots=True)
class SigningCredentials:
    """A certificate chain and its private key, both checked. They never appear in a repr.

    Attributes:
        chain: the certificates as PEM, the signer's own first.
        key: its private key as PEM (PKCS #8).
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> Self:
        """Read and check both files, so that a mistake is found before the recording.

        Args:
            certificate: PEM file with the signer's certificate, then those of its issuers.
            key: PEM file with the private key of the first certificate, without a passphrase.

        Raises:
            ConfigError: a file cannot be read or used, or they do not belong together.
            DependencyError: the extra `c2pa` is not installed.
        """
        import_c2pa()
        from cryptography.hazmat.primitives import serialization

        chain = _read(certificate)
        secret = _load_key(_read(key), key)
        _check_certificate(_load_certificates(chain, certificate)[0], secret, certificate, key)
        pem = secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return cls(chain, pem)


def read_authority(path: Path) -> bytes:
    """Return the certificates of a PEM file, as PEM.

    Raises:
        ConfigError: the file cannot be read, or holds no certificates.
        DependencyError: the extra `c2pa` is not installed.
    """
    import_c2pa()
    from cryptography.hazmat.primitives.serialization import Encoding

    certificates = _load_certificates(_read(path), path)
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def import_c2pa() -> None:
    """Check that the library that signs is installed.

    Raises:
        DependencyError: it is not.
    """
    try:
        import c2pa  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"Signing needs the package c2pa-python; install it with: {pip_install('c2pa')}"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror or error}. {_HELP}") from error


def _load_key(pem: bytes, path: Path) -> "PrivateKeyTypes":
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(f"The private key {path} has a passphrase; expected one without.") from (
            error
        )
    except ValueError:  # its message may repeat what the file holds
        raise ConfigError(f"{path} is not a private key in PEM. {_HELP}") from None
    if not (isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)):
        raise ConfigError(
            f"The private key {path} is not of the curve P-256 (prime256v1), which ES256 needs. "
            + _HELP
        )
    return key


def _load_certificates(pem: bytes, path: Path) -> "list[Certificate]":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise ConfigError(f"{path} is not a certificate in PEM. {_HELP}") from None


def _check_certificate(
    leaf: "Certificate", key: "PrivateKeyTypes", path: Path, key_path: Path
) -> None:
    if leaf.public_key() != key.public_key():
        raise ConfigError(
            f"The private key {key_path} does not belong to the first certificate in {path}; the "
            "signer's own certificate must come first."
        )
    if leaf.subject == leaf.issuer:
        raise ConfigError(
            f"The certificate {path} is self-signed; expected one that an authority issued. {_HELP}"
        )
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ConfigError(
            f"The certificate {path} is valid from {leaf.not_valid_before_utc:%Y-%m-%d} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d} only. Renew it."
        )
    if missing := _missing_usages(leaf):
        raise ConfigError(f"The certificate {path} lacks {' and '.join(missing)}. {_HELP}")


def _missing_usages(leaf: "Certificate") -> list[str]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    missing = []
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
        has_signature = usage.digital_signature
    except x509.ExtensionNotFound:
        has_signature = False
    if not has_signature:
        missing.append("the key usage digitalSignature")
    try:
        extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        has_purpose = ExtendedKeyUsageOID.EMAIL_PROTECTION in extended
    except x509.ExtensionNotFound:
        has_purpose = False
    if not has_purpose:
        missing.append("the extended key usage emailProtection")
    return missing
