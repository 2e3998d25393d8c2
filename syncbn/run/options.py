"""Options of the classes of torch, Lightning and submitit that `conf/` names.

Options of our own classes are next to them. A test compares these defaults with the signatures.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from syncbn.norm.core.options import BelowOne, Count, Natural, NotNegative, Partial, Positive, Range, option, required

SomeBatches = Count | Annotated[float, Range(above=0, high=1)]
Batches = Annotated[int, Range(low=0)] | Annotated[float, Range(low=0, high=1)]
Betas = tuple[BelowOne, BelowOne]


@dataclass
class SGD(Partial):
    """Stochastic gradient descent."""

    lr: Positive = option(1e-3, "learning rate")
    momentum: NotNegative = option(0.0, "momentum of the gradient")
    dampening: NotNegative = option(0.0, "dampening of the momentum")
    weight_decay: NotNegative = option(0.0, "weight decay, not for biases and norms")
    nesterov: bool = option(False, "whether the momentum is Nesterov's")


@dataclass
class Adam(Partial):
    """Adam."""

    lr: Positive = option(1e-3, "learning rate")
    betas: Betas = option((0.9, 0.999), "decay rates of the averages of the gradient and its square")
    eps: NotNegative = option(1e-8, "added to the root of the average square")
    weight_decay: NotNegative = option(0.0, "weight decay, not for biases and norms")
    amsgrad: bool = option(False, "whether to use the largest average square so far")


@dataclass
class AdamW(Adam):
    """Adam with decoupled weight decay."""

    weight_decay: NotNegative = option(1e-2, "weight decay, not for biases and norms")


@dataclass
class Trainer:
    """Lightning's Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", "kind of devices")
    devices: Count | Literal["auto"] = option("auto", "processes on each node; auto: the launcher's")
    num_nodes: Count | Literal["auto"] = option(1, "number of nodes; auto: the launcher's")
    strategy: Any = option("auto", "how processes are coordinated")
    precision: (
        Literal[
            "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "64", "32", 64, 32, 16, "16", "bf16"
        ]
        | None
    ) = option(None, "precision of the network and of its products")
    max_epochs: Count | Literal[-1] | None = option(None, "-1: until something else stops it")
    min_epochs: Natural | None = option(None, "epochs before early stopping")
    max_steps: Count | Literal[-1] = option(-1, "optimizer steps; -1: until something else stops it")
    min_steps: Natural | None = option(None, "optimizer steps before early stopping")
    max_time: str | dict[str, float] | None = option(None, "time limit of each start: DD:HH:MM:SS, or {hours: 12}")
    gradient_clip_val: NotNegative | None = option(None, "largest gradient, by its norm or its values")
    gradient_clip_algorithm: Literal["norm", "value"] | None = option(
        None, "norm: clip the norm of all gradients; value: clip each element; null: norm"
    )
    accumulate_grad_batches: Count = option(1, "batches in an optimizer step")
    limit_train_batches: SomeBatches | None = option(None, "training batches of an epoch: a number, or a fraction")
    limit_val_batches: Batches | None = option(None, "validation batches: a number, or a fraction")
    limit_test_batches: Batches | None = option(None, "test batches: a number, or a fraction")
    check_val_every_n_epoch: Count | None = option(1, "epochs between two validations; null: only by batches")
    val_check_interval: SomeBatches | None = option(None, "interval within an epoch, in batches or a fraction")
    num_sanity_val_steps: Annotated[int, Range(low=-1)] | None = option(None, "validation batches before the training")
    log_every_n_steps: Natural | None = option(None, "steps between rows of metrics")
    deterministic: bool | Literal["warn"] | None = option(None, "whether only deterministic operations are taken")
    benchmark: bool | None = option(None, "whether cuDNN benchmarks its algorithms")
    detect_anomaly: bool = option(False, "whether autograd reports where a NaN comes from")
    overfit_batches: Batches = option(0.0, "repeat the same few batches: a number, or a fraction")
    fast_dev_run: bool | Natural = option(False, "run one or a few batches of training, validation and test")
    profiler: Literal["simple", "advanced", "pytorch"] | dict[str, Any] | None = option(
        None, "Lightning's profiler of times"
    )
    enable_progress_bar: bool | None = option(None, "whether to show a progress bar in a terminal")
    enable_model_summary: bool | None = option(None, "whether to print a table of the layers")
    enable_checkpointing: bool | None = option(None, "whether to write checkpoints")
    inference_mode: bool = option(True, "whether evaluation runs in torch's inference mode")
    plugins: Any = option(None, "Lightning plugins in addition to ours")
    use_distributed_sampler: bool = option(
        True, "whether to share the samples of your own DataModule's loaders among the ranks"
    )


@dataclass
class EarlyStopping:
    """Stops training when a metric stops improving."""

    monitor: str = required("metric that decides")
    mode: Literal["min", "max"] = option("min", "which way is better")
    patience: Natural = option(3, "validations without improvement")
    min_delta: float = option(0.0, "smallest improvement")
    verbose: bool = option(False, "whether to print messages")
    strict: bool = option(True, "whether a metric that isn't logged is an error")
    check_finite: bool = option(True, "whether a non-finite metric stops training")
    stopping_threshold: float | None = option(None, "stop once the metric is this good")
    divergence_threshold: float | None = option(None, "stop once the metric is this bad")
    check_on_train_epoch_end: bool | None = option(None, "whether to check after training epochs")
    log_rank_zero_only: bool = option(False, "whether only rank 0 prints")


@dataclass
class ModelCheckpoint:
    """Writes checkpoints."""

    dirpath: str | None = option(None, "folder of the checkpoints")
    filename: str | None = option(None, "file name without .ckpt")
    monitor: str | None = option(None, "metric that decides which is best")
    mode: Literal["min", "max"] = option("min", "which way is better")
    save_top_k: Annotated[int, Range(low=-1)] = option(1, "number of checkpoints to keep; -1: all")
    save_last: bool | Literal["link"] | None = option(None, "whether the last one is kept too")
    save_weights_only: bool = option(False, "whether to leave out the training state")
    save_on_exception: bool = option(False, "whether to write one when the training raises")
    every_n_train_steps: Natural | None = option(None, "steps between two checkpoints")
    every_n_epochs: Natural | None = option(None, "epochs between two checkpoints")
    save_on_train_epoch_end: bool | None = option(
        None, "whether to save after the training epoch instead of its validation"
    )
    auto_insert_metric_name: bool = option(True, "whether the file name includes the metric's name")
    enable_version_counter: bool = option(True, "whether a new version is written beside an existing file")
    verbose: bool = option(False, "whether to print messages")


@dataclass
class LocalLauncher:
    """Runs jobs on this machine, each in its own processes."""

    _target_: str = required("the launcher")
    name: str = required("of the jobs")
    submitit_folder: str = required("the log of each task")
    timeout_min: Count = option(60, "time limit of a job in minutes")
    tasks_per_node: Count = option(1, "ranks of a job on each node")
    cpus_per_task: Count | None = option(None, "processors per rank")
    gpus_per_node: Natural | None = option(None, "GPUs visible to a job")
    mem_gb: Count | None = option(None, "memory of a job on each node")
    nodes: Literal[1] = option(1, "nodes of a job")
    stderr_to_stdout: bool = option(False, "whether a task has a single log")


@dataclass
class SlurmLauncher(LocalLauncher):
    """Submits jobs to SLURM."""

    nodes: Count = option(1, "nodes of a job")  # type: ignore[assignment]
    partition: str | None = option(None, "SLURM partition")
    qos: str | None = option(None, "SLURM quality of service")
    comment: str | None = option(None, "SLURM comment")
    constraint: str | None = option(None, "required features of the nodes")
    exclude: str | None = option(None, "nodes to leave out")
    gres: str | None = option(None, "SLURM generic resources")
    cpus_per_gpu: Count | None = option(None, "processors per GPU")
    gpus_per_task: Count | None = option(None, "GPUs per rank")
    mem_per_gpu: str | None = option(None, "memory per GPU")
    mem_per_cpu: str | None = option(None, "memory per processor")
    account: str | None = option(None, "SLURM account")
    signal_delay_s: Count = option(120, "seconds before the time limit at which SLURM sends a signal")
    max_num_timeout: Natural = option(0, "number of times that submitit requeues a job")
    additional_parameters: dict[str, Any] = option({}, "other options of sbatch")
    array_parallelism: Count = option(256, "concurrent jobs")
    setup: list[str] | None = option(None, "commands before the ranks start")


OPTIONS: dict[str, type] = {
    "torch.optim.SGD": SGD,
    "torch.optim.Adam": Adam,
    "torch.optim.AdamW": AdamW,
    "lightning.pytorch.Trainer": Trainer,
    "lightning.pytorch.callbacks.EarlyStopping": EarlyStopping,
    "lightning.pytorch.callbacks.ModelCheckpoint": ModelCheckpoint,
    "syncbn.training.BestCheckpoint": ModelCheckpoint,
    "syncbn.training.LastCheckpoint": ModelCheckpoint,
}
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
LAUNCHERS: dict[str, type] = {  # launchers that run jobs outside the sweep's process
    f"{_SUBMITIT}.LocalLauncher": LocalLauncher,
    f"{_SUBMITIT}.SlurmLauncher": SlurmLauncher,
}
