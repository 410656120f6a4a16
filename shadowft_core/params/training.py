"""The sections of params.yaml about training: `train`, which the result depends on, `checkpoint` and `plan`."""

import math
import shlex
from typing import Literal, Self

from pydantic import Field, model_validator

from shadowft_core.limits import ENTRIES, MICRO_BATCHES, VALUE_COUNT
from shadowft_core.params.section import Count, Positive, Processes, Prompt, Section, Seed, Share, Text, Texts


class Lora(Section):
    """Adapter of the methods lora and qlora; delta = alpha / rank * B A (rsLoRA: alpha / sqrt(rank))."""

    rank: Count = Field(128, description="rows of A and columns of B")
    alpha: Positive = Field(256, description="strength of the adapter, relative to the rank")
    rslora: bool = Field(False, description="rank-stabilised scale, arXiv 2312.03732")
    dora: bool = Field(False, description="magnitude and direction trained apart, arXiv 2402.09353")
    dropout: Share = Field(0.0, description="share of the inputs of A set to zero in training")
    targets: Literal["all-linear"] | Texts = Field(
        "all-linear", description="the layers to adapt: all linear layers but the head, or names such as q_proj"
    )
    modules_to_save: Texts = Field((), description="modules to train whole beside the adapter, such as lm_head")


class Osf(Section):
    """Orthogonal subspace fine-tuning (arXiv 2504.07097), a method against forgetting; merged after training."""

    preserved: float = Field(
        0.5, gt=0, lt=1, description="share of the singular directions of each linear layer that stay frozen"
    )


class Dpo(Section):
    """Direct preference optimisation, arXiv 2305.18290."""

    beta: Positive = Field(0.1, description="weight of staying near the starting model")


class Launch(Section):
    """Processes of torchrun. An optimizer step has the same sequences whatever their number."""

    processes: Processes = Field(1, description="processes on each node, one per device")
    nodes: Count = Field(1, description="nodes; start the same command on each")
    strategy: Literal["ddp", "fsdp"] = Field("ddp", description="a whole model in each process, or FSDP2 shards")


class Validation(Section):
    """The loss on validation rows during training."""

    steps: Count | None = Field(
        None, description="optimizer steps between two measurements; when null, measured only at the end"
    )
    patience: Count | None = Field(
        None, description="stop after so many measurements in a row without a new lowest loss"
    )
    keep: Literal["last", "best"] = Field(
        "last", description="the weights to save: of the last step, or of the lowest validation loss"
    )

    @model_validator(mode="after")
    def _needs_steps(self) -> Self:
        if self.steps is None and (self.patience is not None or self.keep == "best"):
            raise ValueError("patience and keep: best compare losses during training; set steps as well")
        return self


class Train(Section):
    """The training. All routes share these settings, data order and seed, except what a further route changes."""

    command: Prompt | None = Field(
        None,
        min_length=1,
        description="a command that trains in place of the settings below: `python my_train.py`",
    )
    objective: Literal["sft", "dpo"] = Field(
        "sft", description="learn replies, or preferences (rows with a rejected reply)"
    )
    method: Literal["lora", "qlora", "osf", "full"] = Field(
        "lora", description="qlora holds the frozen linear layers in 4 bits (NF4) and needs bitsandbytes"
    )
    lora: Lora = Lora()
    osf: Osf = Osf()
    dpo: Dpo = Dpo()
    start: Literal["scratch", "champion"] = Field(
        "scratch", description="weights to start from: the model, or the model plus the champion's delta"
    )
    epochs: Positive = Field(1, description="passes over the training rows")
    max_steps: Count | None = Field(None, description="optimizer steps; overrides epochs when set")
    batch_size: int = Field(
        16,
        ge=1,
        le=MICRO_BATCHES,
        description="sequences per micro-batch and device; with packing, packs; with dpo, preferences",
    )
    accumulation: int = Field(
        1, ge=1, le=MICRO_BATCHES, description="micro-batches per optimizer step, over all processes together"
    )
    optimizer: Literal["adamw", "adamw_8bit"] = Field("adamw", description="adamw_8bit needs CUDA and bitsandbytes")
    learning_rate: Positive = Field(2e-4, description="the highest, after the warmup")
    warmup: Share = Field(0.03, description="share of the steps in which the learning rate rises")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="how the learning rate falls after the warmup, to 0 at the last step, or not at all"
    )
    max_length: int = Field(
        1024, ge=8, le=VALUE_COUNT, description="tokens per sequence; longer rows are counted and left out"
    )
    max_left_out: Share = Field(0.5, description="share of the rows that may be too long or refused by the template")
    packing: bool = Field(
        False, description="put several sequences into one pack of max_length tokens; none attends to another"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass, to hold fewer of them"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="implementation; flash_attention_2 needs CUDA and flash-attn"
    )
    liger: bool = Field(False, description="fused kernels of liger-kernel, except its loss; needs CUDA")
    compile: bool = Field(False, description="torch.compile")
    deterministic: bool | None = Field(
        None, description="same seed, same bits; when null, yes on a CPU and no on CUDA, where it costs speed"
    )
    launch: Launch = Launch()
    validation: Validation = Validation()
    seeds: tuple[Seed, ...] = Field(
        (0,),
        min_length=1,
        max_length=ENTRIES,
        description="of the order of rows and the adapter's first weights; the first seed ships, each further one "
        "trains every route again, for claims about ways of tuning",
    )
    seed: Seed = Field(0, description="the first of `seeds`, or the only one")
    threads: Processes = Field(1, description="CPU threads per process; the bits of the result depend on it")

    @model_validator(mode="after")
    def _one_list_of_seeds(self) -> Self:
        given = self.model_fields_set & {"seed", "seeds"}
        if len(given) == 2 and self.seed != self.seeds[0]:
            raise ValueError(f"seed is {self.seed}, but seeds begins with {self.seeds[0]}; remove seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}, which has a seed twice; each trains once, name others")
        if given == {"seed"}:
            object.__setattr__(self, "seeds", (self.seed,))
        else:
            object.__setattr__(self, "seed", self.seeds[0])
        return self

    @model_validator(mode="after")
    def _command_can_be_run(self) -> Self:
        if self.command is None:
            return self
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"command is {self.command!r}: {error}; quote as for a shell") from None
        if not words:
            raise ValueError("command has no words; name a program, or use null")
        if self.start == "champion":
            raise ValueError(
                "start is champion, but command starts from the model it is given; set start to scratch, or command to "
                "null"
            )
        return self

    @property
    def words(self) -> list[str]:
        """The words of `command`, split as by a shell; empty without one."""
        return shlex.split(self.command) if self.command is not None else []

    def unused(self) -> list[str]:
        """With a command, the names of the settings that have no effect although they differ from their defaults."""
        return [
            name
            for name, field in type(self).model_fields.items()
            if self.command is not None
            and name not in ("command", "seed", "seeds")
            and getattr(self, name) != field.get_default(call_default_factory=True)
        ]

    def with_seed(self, seed: int | None) -> Self:
        """The settings of one training, with another seed; None: the first."""
        return self.model_copy(update={"seed": self.seed if seed is None else seed})

    @model_validator(mode="after")
    def _processes_share_the_micro_batches(self) -> Self:
        world, rows = self.launch.processes * self.launch.nodes, self.batch_size * self.accumulation
        if self.accumulation % world == 0:
            return self
        same = sorted(world * part for part in _divisors(rows // world)) if rows % world == 0 else []
        if same:
            many = next((found for found in same if found > self.accumulation), same[-1])  # smaller ones fit in memory
            remedy = f"accumulation {many} with batch_size {rows // many} has the same {rows} sequences per step"
        else:
            near = {max(1, self.accumulation // world) * world, -(-self.accumulation // world) * world}
            remedy = f"{rows} sequences per step cannot be shared by {world}; set accumulation to " + " or ".join(
                f"{many} ({self.batch_size * many} sequences)" for many in sorted(near)
            )
        raise ValueError(
            f"accumulation is {self.accumulation}, but launch has {world} processes, which share the micro-batches of "
            f"a step equally; {remedy}"
        )


def _divisors(number: int) -> set[int]:
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return {*small, *(number // one for one in small)}


class Checkpoint(Section):
    """How often training saves its state, from which an interrupted run resumes. The result does not depend on it."""

    steps: Count | None = Field(None, description="optimizer steps between two checkpoints")
    minutes: Positive | None = Field(10, description="minutes between two checkpoints")
    keep: Count = Field(2, description="number of checkpoints to keep; all are removed when the result is in place")
    folder: Text = Field("var/checkpoints", min_length=1, description="outside the folders that DVC owns")
    store: bool = Field(False, description="also keep checkpoints in the store, so that another machine can resume")


class Plan(Section):
    """What `shadowft plan` assumes. No stage depends on it."""

    device: Text | None = Field(
        None,
        min_length=1,
        description="H100, A100, L4 or another known device, or cpu; when null, what this machine has",
    )
    utilisation: float | None = Field(
        None, gt=0, le=1, description="share of the peak FLOP/s that training reaches; a stated assumption when null"
    )
    price_per_hour: float | None = Field(
        None, ge=0, le=VALUE_COUNT, description="of one device, in any currency; no price when null"
    )
