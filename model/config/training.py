"""Settings of a training. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, WithJsonSchema, model_validator

from ..errors import UserError
from .augmentation import AugmentationConfig
from .base import Positive, Settings
from .fine_tuning import FineTuningConfig, NormalizationConfig
from .network import Layers, NetworkName, check_layers
from .optimizer import OptimizerConfig


class OuterConfig(Settings):
    """The outer optimizer: SGD with momentum on the step from one average to the next. 1 and 0 are plain averaging."""

    learning_rate: Positive = 1.0
    """Share of the averaged step that is taken."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Slow momentum over rounds."""
    nesterov: bool = False
    """Use Nesterov momentum, as DiLoCo does."""

    @property
    def is_plain(self) -> bool:
        """Whether the outer step is the mean itself."""
        return self.learning_rate == 1 and self.momentum == 0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs momentum over 0: set averaging.outer.momentum, such as 0.9")
        return self


Frequency = Annotated[
    Annotated[int, Field(ge=1, le=1_000_000)] | Literal["epoch"],
    WithJsonSchema({"type": "string", "pattern": "^(epoch|[1-9][0-9]{0,5}|10{6})$"}),
]


SynchronousSteps = Annotated[
    Annotated[int, Field(ge=0, le=10**9)] | Literal["all"],
    WithJsonSchema({"type": "string", "pattern": "^(all|[0-9]{1,9}|10{9})$"}),
]


class AveragingConfig(Settings):
    """When and how the workers' states are averaged."""

    frequency: Frequency = 5
    """Minibatches of each worker between two averagings; `epoch`: average once, at the end of each epoch."""
    optimizer_state: Literal["average", "keep", "reset"] = "average"
    """What an averaging does to the optimizers' states: average them, let each worker keep its own, or reset them."""
    weights: Literal["examples", "uniform"] = "examples"
    """A worker's weight: the examples it saw in the round, or the same for each worker that saw any."""
    outer: OuterConfig = OuterConfig()
    synchronous_steps: SynchronousSteps = 0
    """Steps at the start of the training that average gradients (post-local SGD); `all`: every step, as DDP does."""
    comm_dtype: Literal["float32", "bfloat16"] = "float32"
    """What workers send each other: values, or their changes in half as many bytes. Sums are in float32."""


MetricName = Literal[
    "accuracy",
    "loss",
    "top_3_accuracy",
    "top_5_accuracy",
    "precision_macro",
    "precision_micro",
    "precision_weighted",
    "recall_macro",
    "recall_micro",
    "recall_weighted",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "mcc",
    "roc_auc_macro",
    "roc_auc_weighted",
    "ece",
]
LOWEST_IS_BEST: frozenset[MetricName] = frozenset({"loss", "ece"})


class EarlyStoppingConfig(Settings):
    """Which epoch's state becomes the model, and when training ends before the last epoch."""

    metric: MetricName = "accuracy"
    """Metric of the validation split that decides: the highest, or for loss and ece the lowest, is best."""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Epochs without a better one after which training ends; null: never before num_epochs."""

    def check(self, num_classes: int) -> None:
        """Raise UserError when a DataSet of so many classes has no such metric."""
        if self.metric in ("top_3_accuracy", "top_5_accuracy") and num_classes <= int(self.metric[4]):
            raise UserError(
                f"early_stopping.metric is {self.metric}, which needs more than {self.metric[4]} classes, and the "
                f"DataSet has {num_classes}: choose another, such as accuracy"
            )


class ComputeConfig(Settings):
    """How a step is computed. auto: what was fastest when measured (docs/networks.md)."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the network's matrix products; all else stays float32. auto: float32."""
    channels_last: Literal["auto", "always", "never"] = "auto"
    """Store the channels of a pixel side by side. auto: on a CPU, for the networks that have a name."""
    compile: Literal["auto", "always", "cuda_graphs", "never"] = "auto"
    """Compile steps by torch.compile; cuda_graphs: also replay them as CUDA graphs. auto: never."""


class TrainingConfig(Settings):
    """Everything that determines the trained parameters, given a DataSet."""

    network: NetworkName = "lenet"
    """Network: lenet, small_cnn, vgg_small, resnet18, resnet50, layers, or an allowed factory (package.nets:make)."""
    layers: Layers = []
    """With network=layers: the layers, such as {layer: conv, channels: 20}; a linear layer to the classes is added."""
    optimizer: OptimizerConfig = OptimizerConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    averaging: AveragingConfig = AveragingConfig()
    compute: ComputeConfig = ComputeConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    class_weights: Literal["none", "balanced"] = "none"
    """Weight of an example in the training loss: 1, or inversely proportional to its class's share of the split."""
    fine_tuning: FineTuningConfig = FineTuningConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    num_epochs: Annotated[int, Field(ge=1, le=100_000)] = 5
    """Passes over the training split."""
    num_workers: Annotated[int, Field(ge=1, le=4096)] = 2
    """Workers that train in parallel, each in a Spark task of its own."""
    batch_size_per_worker: Annotated[int, Field(ge=1, le=65_536)] = 32
    """Examples of one optimizer step of one worker."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial parameters, the order of examples, their augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where workers compute; auto: the GPU that the task owns or finds, else the CPU."""
    allow_shared_gpu: bool = False
    """Let several workers share a GPU; they then average on the CPU."""
    threads_per_worker: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of one worker; null: the cores that Spark gives a task (spark.task.cpus)."""
    shuffle_buffer_bytes: Annotated[int, Field(ge=1, le=2**40)] = 64 * 2**20
    """Bytes of images that each worker shuffles at a time; with prefetch_batches it holds up to three times as many."""
    shard_cache_bytes: Annotated[int, Field(ge=1, le=2**50)] | None = None
    """Bytes of shards from a remote store that each machine caches on its own disk; null: none."""
    prefetch_batches: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Minibatches that each worker prefetches in threads; null: 4 for a GPU or a remote store, else 0."""
    timeout_s: Annotated[int, Field(ge=1, le=86_400)] = 300
    """Seconds after which a worker without progress, or a peer that an averaging waits for, is given up."""
    checkpoint_every_rounds: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Rounds after which the state is saved within an epoch; null: at the end of each epoch only."""
    max_segment_retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Times that a segment (from one checkpoint to the next) is repeated after workers were lost."""
    min_workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Fewest workers to continue with after machines were lost; with fewer, the training fails."""
    wait_for_workers_s: Annotated[int, Field(ge=0, le=86_400)] = 30
    """Seconds to wait at the start for a slot for each worker, and later for lost ones before continuing with fewer."""

    @model_validator(mode="after")
    def _fewest_workers_are_not_more_than_all(self) -> Self:
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers is {self.min_workers}, over num_workers, which is {self.num_workers}")
        return self

    @model_validator(mode="after")
    def _layers_belong_to_the_network(self) -> Self:
        check_layers(self.network, self.layers)
        return self
