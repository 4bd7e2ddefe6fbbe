"""What export gives and the run side opens: verified before use, without a pickle anywhere."""

from edgekit.bundle.bundle import Bundle, VerifyResult, verify
from edgekit.bundle.layout import describe_file
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.signature import generate_key
from edgekit.bundle.write import check_folder, check_output, write_bundle

__all__ = [
    "Bundle",
    "Manifest",
    "VerifyResult",
    "check_folder",
    "check_output",
    "describe_file",
    "generate_key",
    "verify",
    "write_bundle",
]
