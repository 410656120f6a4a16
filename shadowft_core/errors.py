"""The exceptions of the project. A user meets each as one line: what, both values, what to do.

    ShadowError
    ├── InputError                     what the user handed over is not usable
    │   ├── ParamsError                params.yaml: unknown field, wrong type, contradiction
    │   ├── DataError                  a data file or a row of it
    │   ├── CheckpointError            a model folder: missing, truncated, malformed, unsafe
    │   │   └── QuantisedError         weights of a type that is not added to: quantised, fp8, float64, integers
    │   └── AdapterError               an adapter and an exact delta that cannot become each other
    ├── PairError                      this Base and this Instruct may not be paired
    │   ├── SameModelError             one and the same model on both sides
    │   ├── SwappedError               the Base in the Instruct's place
    │   └── UnrelatedError             the weights of two models, or of one tensor, have nothing to do with each other
    ├── MisfitError                    two models, or a model and a delta, do not fit
    │   ├── TensorMissingError         one side lacks a tensor: dropped, extra or renamed
    │   ├── ShapeMismatchError         another shape, a transposed matrix
    │   ├── TokenMismatchError         rows of an embedding or head that no token id explains
    │   ├── WrongBaseError             made from another model than the one at hand
    │   └── OntoBaseError              a delta on its own Base, not asked for by name
    ├── DeltaError                     a delta that is damaged or of an unknown format
    │   ├── ZeroDeltaError             nothing was learnt, or nothing of it travels
    │   └── NotFiniteError             NaN or infinity in weights or delta
    ├── GraftError                     the sum cannot be written: digest differs from the recipe, no scale
    │   └── CastOverflowError          the sum exceeds the output dtype
    ├── TrainError                     loss not finite, nothing learnable
    ├── EvaluationError                a task is missing, items differ between arms
    ├── StoreError                     the delta store
    │   ├── StoreUnreachableError      no answer, wrong credentials
    │   ├── StoreConflictError         the name is taken by other content
    │   └── StoreCorruptError          bytes that do not match their digest
    ├── RegistryError                  the tracking server or the model registry
    │   ├── RegistrationPendingError   MLflow could not take it now; it is kept and sent later; an exit code of its own
    │   └── LedgerError                the promotion ledger: an edited entry, a lost race
    └── PromotionRefusedError          the verdict does not allow it

`exit_code` is what the command line returns for the class; 2 is kept for usage errors, as in typer. No message shows
the password of a URL: `without_passwords` is the one rule for what is printed, logged, recorded or refused.
"""

import re

_END = r"\s'\"`<>"  # what a URL in running text ends at
_NAMES = (  # how the name of a query parameter ends that holds a secret
    r"passw(?:or)?d|passphrase|pass|pwd|secret|token|sig(?:nature)?|credentials?|odbc_connect"
    r"|(?:api|access|secret)[-_.]?key(?:[-_]?id)?"
)
# User and password in front of the host. With http a user alone is a token; with others it is a name, and is shown.
# Of several @ the last one counts, and a slash may stand in the password: databases take both unquoted.
_USER = re.compile(rf"(\bhttps?://)[^{_END}/?#]*@|((?<!/)//)[^{_END}:/@?#]*:(?!\d*/)[^{_END}]*@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_NAMES})=)[^&;#{_END}]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """Text with `***` in place of the user and password, and of the secret query parameters, of every URL in it."""
    return _QUERY.sub(r"\1***", _USER.sub(lambda found: f"{found[1] or found[2]}***@", text))


class ShadowError(Exception):
    """Root of all errors a user can act on. Its message shows no password that a URL in it held."""

    exit_code = 1

    def __init__(self, *words: object) -> None:
        super().__init__(*(without_passwords(str(word)) for word in words))


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


class EvaluationError(ShadowError):
    exit_code = 7


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
