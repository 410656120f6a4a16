"""The exceptions of the project. A user meets each as one line: what, both values, what to do.

    ShadowError
    ├── InputError              what the user handed over is not usable
    │   ├── ParamsError         params.yaml: unknown field, wrong type, contradiction
    │   ├── DataError           a data file or a row of it
    │   ├── CheckpointError     a model folder: missing, truncated, malformed, unsafe
    │   │   └── Quantised       weights of a type that is not added to: quantised, fp8, float64, integers
    │   └── AdapterError        an adapter that cannot become an exact delta, a delta that cannot become an adapter
    ├── PairError               this Base and this Instruct may not be paired
    │   ├── SameModel           one and the same model on both sides
    │   ├── Swapped             the Base in the Instruct's place
    │   └── Unrelated           the weights of two models, or of one tensor, have nothing to do with each other
    ├── MisfitError             two models, or a model and a delta, do not fit
    │   ├── TensorMissing       one side lacks a tensor: dropped, extra or renamed
    │   ├── ShapeMismatch       another shape, a transposed matrix
    │   ├── TokenMismatch       rows of an embedding or head that no token id explains
    │   ├── WrongBase           made from another model than the one at hand
    │   └── OntoBase            a delta on its own Base, not asked for by name
    ├── DeltaError              a delta that is damaged or of an unknown format
    │   ├── ZeroDelta           nothing was learnt, or nothing of it travels
    │   └── NotFinite           NaN or infinity in weights or delta
    ├── GraftError              the sum cannot be written: digest differs from the recipe, no scale
    │   └── CastOverflow        the sum exceeds the output dtype
    ├── TrainError              loss not finite, nothing learnable
    ├── EvaluationError         a task is missing, items differ between arms
    ├── StoreError              the delta store
    │   ├── StoreUnreachable    no answer, wrong credentials
    │   ├── StoreConflict       the name is taken by other content
    │   └── StoreCorrupt        bytes that do not match their digest
    ├── RegistryError           the tracking server or the model registry
    │   ├── RegistrationPending MLflow could not take it now; it is kept and sent later
    │   └── LedgerError         the promotion ledger: an edited entry, a lost race
    └── PromotionRefused        the verdict does not allow it

`exit_code` is what the command line returns for the class; 2 is kept for usage errors, as in typer.
"""


class ShadowError(Exception):
    """Root of all errors a user can act on."""

    exit_code = 1


class InputError(ShadowError):
    exit_code = 3


class ParamsError(InputError):
    pass


class DataError(InputError):
    pass


class CheckpointError(InputError):
    pass


class Quantised(CheckpointError):
    pass


class AdapterError(InputError):
    pass


class PairError(ShadowError):
    exit_code = 4


class SameModel(PairError):
    pass


class Swapped(PairError):
    pass


class Unrelated(PairError):
    pass


class MisfitError(ShadowError):
    exit_code = 5


class TensorMissing(MisfitError):
    pass


class ShapeMismatch(MisfitError):
    pass


class TokenMismatch(MisfitError):
    pass


class WrongBase(MisfitError):
    pass


class OntoBase(MisfitError):
    pass


class DeltaError(ShadowError):
    exit_code = 5


class ZeroDelta(DeltaError):
    pass


class NotFinite(DeltaError):
    pass


class GraftError(ShadowError):
    exit_code = 5


class CastOverflow(GraftError):
    pass


class TrainError(ShadowError):
    exit_code = 6


class EvaluationError(ShadowError):
    exit_code = 7


class StoreError(ShadowError):
    exit_code = 8


class StoreUnreachable(StoreError):
    pass


class StoreConflict(StoreError):
    pass


class StoreCorrupt(StoreError):
    pass


class RegistryError(ShadowError):
    exit_code = 9


class RegistrationPending(RegistryError):
    pass


class LedgerError(RegistryError):
    pass


class PromotionRefused(ShadowError):
    exit_code = 10
