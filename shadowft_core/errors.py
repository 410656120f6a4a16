"""The exceptions of the project. A user meets each as one line: what, both values, what to do.

    ShadowError
    ├── InputError            what the user handed over is not usable
    │   ├── ParamsError       params.yaml: unknown field, wrong type, contradiction
    │   ├── DataError         a data file or a row of it
    │   ├── CheckpointError   a model folder: missing, truncated, malformed, unsafe
    │   └── AdapterError      an adapter that cannot become an exact delta
    ├── PairError             this Base and this Instruct may not be paired
    ├── DeltaError            a delta that does not fit, is empty, is damaged or is not finite
    ├── GraftError            the sum cannot be written: overflow, digest differs from the recipe
    ├── TrainError            loss not finite, nothing learnable
    ├── EvaluationError       a task is missing, items differ between arms
    ├── StoreError            the delta store
    │   ├── StoreUnreachable  no answer, wrong credentials
    │   ├── StoreConflict     the name is taken by other content
    │   └── StoreCorrupt      bytes that do not match their digest
    ├── RegistryError         the tracking server or the model registry
    └── PromotionRefused      the verdict does not allow it

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


class AdapterError(InputError):
    pass


class PairError(ShadowError):
    exit_code = 4


class DeltaError(ShadowError):
    exit_code = 5


class GraftError(ShadowError):
    exit_code = 5


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


class PromotionRefused(ShadowError):
    exit_code = 10
