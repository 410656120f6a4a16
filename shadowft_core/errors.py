"""The exceptions of the project. The command line prints each as one line: what is wrong, both values, the remedy.

    ShadowError
    ├── InputError                     unusable input
    │   ├── ParamsError                params.yaml: unknown field, wrong type, contradiction
    │   ├── DataError                  a data file, or a row in one
    │   ├── CheckpointError            a model folder: missing, truncated, malformed, unsafe
    │   │   └── QuantisedError         a dtype that cannot be added to: quantised, fp8, float64, integers
    │   └── AdapterError               an adapter without an exact delta, or a delta that is not an adapter
    ├── PairError                      this Base and this Instruct may not be paired
    │   ├── SameModelError             both are the same model
    │   ├── SwappedError               the Base is in the Instruct's place
    │   └── UnrelatedError             the weights of two models, or of one tensor, are unrelated
    ├── MisfitError                    two models, or a model and a delta, do not match
    │   ├── TensorMissingError         one side lacks a tensor: dropped, added or renamed
    │   ├── ShapeMismatchError         the shapes differ, or a matrix is transposed
    │   ├── TokenMismatchError         rows of an embedding or head that match no token id
    │   ├── WrongBaseError             made from another model than the one given
    │   └── OntoBaseError              a delta on its own Base without --onto-base
    ├── DeltaError                     a delta that is damaged or of an unknown format
    │   ├── ZeroDeltaError             nothing was learnt, or nothing of it is grafted
    │   └── NotFiniteError             NaN or infinity in weights or delta
    ├── GraftError                     the graft cannot be written: no scale, or a digest differs from the recipe
    │   └── CastOverflowError          the sum exceeds the output dtype
    ├── TrainError                     the loss is not finite, nothing can be learnt, or a template cannot be used
    ├── StoppedError                   SIGTERM or SIGINT stopped a training; the same command resumes it
    ├── EvaluationError                a task is missing, or items differ between arms
    │   └── SandboxError               programs cannot be isolated on this system
    ├── StoreError                     the delta store
    │   ├── StoreUnreachableError      no answer, or wrong credentials
    │   ├── StoreConflictError         the name is taken by other content
    │   └── StoreCorruptError          bytes that do not match their digest
    ├── RegistryError                  the tracking server or the model registry
    │   ├── RegistrationPendingError   MLflow did not accept it now; it is kept and sent later
    │   └── LedgerError                the promotion ledger: an edited entry, a lost race
    └── PromotionRefusedError          the verdict does not allow the promotion

`exit_code` is the exit code of the command line; subclasses inherit it. 2 is left for usage errors, as in typer. A
message is one line of bounded length (`one_line`), whatever names and texts it quotes. No message shows the
password of a URL: `without_passwords` masks all text that is printed, logged, recorded or raised.
"""

import re
import sys

from shadowft_core.limits import MESSAGE_CHARACTERS

_END = r"\s'\"`<>"  # characters that end a URL in running text
_NAMES = (  # a query parameter holds a secret if its name ends in one of these
    r"passw(?:or)?d|passphrase|pass|pwd|secret|token|sig(?:nature)?|credentials?|odbc_connect"
    r"|(?:api|access|secret)[-_.]?key(?:[-_]?id)?"
)
# User and password before the host. With http, a user alone is a token and is masked; elsewhere it is a name and shown.
# The last @ counts, and the password may contain a slash: database URLs allow both unquoted.
_USER = re.compile(rf"(\bhttps?://)[^{_END}/?#]*@|((?<!/)//)[^{_END}:/@?#]*:(?!\d*/)[^{_END}]*@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_NAMES})=)[^&;#{_END}]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Replace user, password and secret query parameters of every URL in the text by `***`."""
    return _QUERY.sub(r"\1***", _USER.sub(lambda found: f"{found[1] or found[2]}***@", text))


# Control characters, line separators, marks that change the direction of writing, and surrogates.
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


def plain(text: str, keep: str = "") -> str:
    """The text, made harmless to a terminal: control characters become JSON escapes, such as \\u001b.

    So do line separators, marks of writing direction and surrogates; the characters in `keep` stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else _SHORT.get(found[0], f"\\u{ord(found[0]):04x}"), text
    )


def one_line(text: str, most: int = MESSAGE_CHARACTERS) -> str:
    """The text as one plain line of at most `most` characters, without passwords; a longer one loses its middle."""
    text = plain(without_passwords(text if len(text) <= 5 * most else _cut(text, 5 * most)))
    return text if len(text) <= most else _cut(text, most)


def _cut(text: str, most: int) -> str:
    half = (most - 60) // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} characters left out) ... {text[-half:]}"


def say(text: str) -> None:
    """Print one line to stderr, whatever names and texts of others are in it."""
    print(one_line(text), file=sys.stderr, flush=True)


class ShadowError(Exception):
    """Root of all errors that a user can act on. Its message is one line: see `one_line`."""

    exit_code = 1

    def __init__(self, *words: object) -> None:
        super().__init__(*(one_line(str(word)) for word in words))


class InputError(ShadowError):
    exit_code = 3


class ParamsError(InputError):
    pass


class DataError(InputError):
    pass


class CheckpointError(InputError):
    pass


class QuantisedError(CheckpointError):
    pass


class AdapterError(InputError):
    pass


class PairError(ShadowError):
    exit_code = 4


class SameModelError(PairError):
    pass


class SwappedError(PairError):
    pass


class UnrelatedError(PairError):
    pass


class MisfitError(ShadowError):
    exit_code = 5


class TensorMissingError(MisfitError):
    pass


class ShapeMismatchError(MisfitError):
    pass


class TokenMismatchError(MisfitError):
    pass


class WrongBaseError(MisfitError):
    pass


class OntoBaseError(MisfitError):
    pass


class DeltaError(ShadowError):
    exit_code = 5


class ZeroDeltaError(DeltaError):
    pass


class NotFiniteError(DeltaError):
    pass


class GraftError(ShadowError):
    exit_code = 5


class CastOverflowError(GraftError):
    pass


class TrainError(ShadowError):
    exit_code = 6


class StoppedError(ShadowError):
    """Its exit code is 128 + the number of the signal, by the convention of shells."""

    def __init__(self, message: str, number: int = 15) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class EvaluationError(ShadowError):
    exit_code = 7


class SandboxError(EvaluationError):
    pass


class StoreError(ShadowError):
    exit_code = 8


class StoreUnreachableError(StoreError):
    pass


class StoreConflictError(StoreError):
    pass


class StoreCorruptError(StoreError):
    pass


class RegistryError(ShadowError):
    exit_code = 9


class RegistrationPendingError(RegistryError):
    exit_code = 11


class LedgerError(RegistryError):
    pass


class PromotionRefusedError(ShadowError):
    exit_code = 10
