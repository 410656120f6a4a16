"""The sections of params.yaml, one per stage. Unknown fields are refused; each field describes its unit.

The sections that the package exports name the argument `default` of their fields: type checkers without the plugin of
pydantic know it only so.
"""

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from shadowft_core.errors import ParamsError
from shadowft_core.limits import ENTRIES
from shadowft_core.params.evaluating import Evaluate
from shadowft_core.params.routes import Route, RouteName, changed_train, require_known
from shadowft_core.params.section import Count, Positive, Scale, Section, Seed, Share, Text, Texts
from shadowft_core.params.training import Checkpoint, Plan, Train


class Fetch(Section):
    """The pair. A model is a folder, `hf:OWNER/NAME@REVISION` (40 hex digits), `s3://bucket/prefix` or `pico:...`."""

    base: Text = Field(min_length=1, description="the pretrained model, tuned by the route shadow")
    instruct: Text = Field(min_length=1, description="the post-trained model, on which the delta is grafted")


class Pinned(Section):
    """Further data files. DVC cannot watch a path that may be null, so params.yaml has their digest."""

    digest: str = Field(
        "",
        pattern=r"^(sha256:[0-9a-f]{64})?$",
        description="sha256:HEX of the file or folder; leave it out, and `prepare` prints it",
    )


class Newest(Pinned):
    """How to find the newest rows: by their dates, or as those that an earlier version of the data lacks."""

    by: Text | None = Field(
        None, min_length=1, description="name of the field with the date of a row: ISO 8601, or seconds since 1970"
    )
    since: Text | None = Field(
        None, min_length=1, description="the earlier version: a data file or folder, or a folder made by `prepare`"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.by is None) == (self.since is None) or (self.by and self.digest):
            raise ValueError("expected either {by: FIELD} or {since: PATH, digest: sha256:HEX}")
        return self


class Replay(Pinned):
    """General instruction data that only training reads, against forgetting."""

    data: Text = Field(min_length=1, description="a data file, or a folder of them")
    share: float = Field(gt=0, lt=1, description="share of all training rows that are replay rows")


class Prepare(Section):
    """From data files to splits of conversations."""

    data: Text = Field(min_length=1, description="a data file, or a folder of them")
    valid: Share = Field(0.05, description="share of rows for the validation loss")
    dev: Share = Field(0.0, description="share of rows held out to choose the scale")
    test: Share = Field(0.0, description="share of rows held out for the verdict")
    newest: Newest | None = Field(
        None, description="take dev and test from the newest rows; when null, a hash of the question decides"
    )
    replay: Replay | None = Field(None, description="general rows that only training reads; none when null")
    columns: dict[Text, Text] = Field(
        {}, max_length=ENTRIES, description="field of a row: the name it is read by, such as `Frage: question`"
    )
    near: Share | None = Field(
        0.8, description="Jaccard similarity of near duplicates, over sequences of 3 words; not searched when null"
    )
    max_bad: Share = Field(0.01, description="largest share of bad rows; above it the stage fails")
    max_rows: Count | None = Field(None, description="number of rows to keep, chosen by hash; all when null")


class Render(Section):
    """How messages become text, in training and in evaluation."""

    thinking: Literal["keep", "last", "none"] = Field(
        "keep",
        description="thoughts (reasoning_content, <think>) to learn: all, those of the last reply, or none. If the "
        "template drops earlier thoughts, `keep` makes a separate sequence for each reply",
    )
    system: Literal["refuse", "fold"] = Field(
        "refuse",
        description="if the template prints no system turn: put it before the first user turn (fold), or count the "
        "row as refused",
    )
    template_tokens: Literal["from_instruct", "train", "error"] = Field(
        "from_instruct",
        description="control tokens whose rows of embedding and head the Base never trained: use the Instruct's rows "
        "during training (the delta has only the change by training), train these rows, or refuse",
    )


class Extract(Section):
    """How the delta is extracted."""

    ignore: Texts = Field(
        (), description="glob patterns of tensors that only one model (Base, tuned model or Instruct) may have"
    )


class Sweep(Section):
    """The choice of the scale, on dev items only."""

    scales: tuple[Scale, ...] = Field(
        (0.25, 0.5, 0.75, 1.0),
        min_length=1,
        max_length=ENTRIES,
        description="numbers to try, each multiplies the delta",
    )
    scope: Literal["all", "linear"] | Texts = Field("all", description="tensors of the delta to apply")
    factors: dict[Text, Scale] = Field(
        {},
        max_length=ENTRIES,
        description="glob pattern of tensors: a number that multiplies every scale for them. Patterns with different "
        "numbers must not match the same tensor",
    )
    domain: Texts = Field(min_length=1, description="dev tasks of the domain")
    guards: Texts = Field((), description="dev tasks that must not get worse")
    tolerance: Share = Field(0.02, description="largest mean guard loss on dev items, in score units")


class Graft(Section):
    """The grafted model."""

    scale: Literal["sweep"] | Scale = Field("sweep", description="a number, or `sweep`: the scale that sweep chose")
    dtype: Literal["instruct", "float32", "bfloat16", "float16"] = Field("instruct", description="of the result")


class Thresholds(Section):
    """Thresholds of a metric whose scores are not shares of right answers, in the unit of that metric."""

    margin: Positive = Field(description="smallest mean loss on all guards together that counts as harm")
    margin_each: Positive = Field(description="smallest loss on one guard that counts as harm")
    worthwhile: Positive = Field(description="smallest gain worth shipping")


class Verdict(Section):
    """Thresholds of the promotion decision. Margins and gains are in score units, for shares of right answers."""

    alpha: float = Field(
        default=0.05, gt=0, lt=0.5, description="error rate of all verdicts on the same test items together"
    )
    margin: float = Field(
        default=0.03, gt=0, lt=1, description="smallest mean loss on all guards together that counts as harm"
    )
    margin_each: float = Field(default=0.05, gt=0, lt=1, description="smallest loss on one guard that counts as harm")
    worthwhile: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="smallest domain gain worth shipping: tells a tie from too few items; a proven gain may be smaller",
    )
    metrics: dict[Text, Thresholds] = Field(
        default={}, max_length=ENTRIES, description="thresholds of metrics that are not shares, by name"
    )
    require: Texts = Field(
        default=(), description="claims about the method that must hold too, such as `shadow_scaled > direct_scaled`"
    )
    resamples: int = Field(
        default=9999, ge=999, le=10**7, description="random exchanges of the arms in a permutation test"
    )
    seed: Seed = Field(default=0, description="random seed of these exchanges")


class Store(Section):
    """The delta store: a folder or s3://bucket/prefix."""

    uri: Text = Field(default="var/store", min_length=1, description="a folder, or s3://bucket/prefix")
    endpoint: Text | None = Field(default=None, description="URL of an S3 server other than AWS")
    region: Text | None = Field(
        default=None, description="of the bucket; when null, that of the AWS profile or AWS_REGION"
    )
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = Field(
        default=None, description="encryption at rest, S3 only"
    )
    sse_kms_key: Text | None = Field(default=None, min_length=1, description="id or ARN of the key; with sse aws:kms")
    bucket_owner: str | None = Field(
        default=None, pattern=r"^\d{12}$", description="AWS account that must own the bucket"
    )
    chunk_bytes: int | None = Field(
        default=None,
        ge=1 << 16,
        le=256 << 20,
        description="size of the objects that a tensor is split into; 16 MiB when null",
    )

    @model_validator(mode="after")
    def _key_needs_kms(self) -> Self:
        if self.sse_kms_key and self.sse not in ("aws:kms", "aws:kms:dsse"):
            raise ValueError(f"sse_kms_key is set with sse {self.sse!r}; set sse to aws:kms")
        return self


class Registry(Section):
    """The MLflow model registry. MLFLOW_TRACKING_URI overrides `tracking_uri`, SHADOWFT_REGISTRY_NAME `name`;
    MLFLOW_REGISTRY_URI is not used."""

    name: str = Field(default="shadowft", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="registered model")
    tracking_uri: Text = Field(
        default="sqlite:///var/mlflow/mlflow.db",
        min_length=1,
        description="a database, or the URL of an MLflow server",
    )

    def named(self, name: str) -> Self:
        """The same registry for another registered model. Raises ParamsError for a name that cannot be one."""
        try:
            return self.model_validate(self.model_dump() | {"name": name})
        except ValidationError:
            raise ParamsError(
                f"{name[:80]!r}: expected the name of a model: letters, digits, '.', '_' and '-', at most 100, the "
                "first a letter or digit"
            ) from None


class Params(Section):
    """All of params.yaml."""

    routes: dict[RouteName, Route] = Field(
        max_length=1_000,
        description="the model that each route tunes; without `direct` nothing is claimed about direct tuning, and "
        "never about a further route",
    )
    fetch: Fetch
    prepare: Prepare
    render: Render = Render()
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    plan: Plan = Plan()
    extract: Extract = Extract()
    sweep: Sweep
    graft: Graft
    evaluate: Evaluate
    verdict: Verdict
    store: Store = Store()
    registry: Registry = Registry()

    @model_validator(mode="after")
    def _routes_are_the_known_ones(self) -> Self:
        require_known(self.routes)
        return self

    def train_for(self, route: str) -> Train:
        """The training settings of a route: those of `train`, and those that the route changes.

        Raises ParamsError if there is no such route, or a setting is refused.
        """
        if route not in self.routes:
            raise ParamsError(f"routes.{route}: no such route; known routes are {', '.join(self.routes)}")
        return changed_train(self.train, route, self.routes[route])
