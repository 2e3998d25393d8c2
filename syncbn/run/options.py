"""What each kind of config in `conf/` may say: a dataclass whose fields are the keys, with types and bounds."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from syncbn.norm.core.options import BelowOne, Count, Fraction, Natural, NotNegative, Positive, Range, Share

Batches = Annotated[int, Range(low=0)] | Fraction


@dataclass
class _Model:
    _target_: str
    norm: None = None  # the group `norm` says it
    num_classes: Count | None = None  # null: the data's
    in_channels: Count | None = None
    weights: str | None = None


@dataclass
class ResNet(_Model):
    stem: Literal["imagenet", "cifar"] = "imagenet"
    width: Count = 64
    zero_init_residual: bool = False
    placement: Literal["post_conv", "post_activation", "pre_activation"] = "post_conv"
    activation: Literal["relu", "leaky_relu"] = "relu"
    checkpoint_blocks: bool = False


@dataclass
class Pretrained(_Model):
    image_size: Count | tuple[Count, Count] | None = None  # null: the data's
    architecture: str = "resnet18"
    pretrained: bool = True


@dataclass
class Inception(_Model):
    width: Annotated[int, Range(low=2)] = 64
    activation: Literal["relu", "sigmoid"] = "relu"
    dropout: BelowOne = 0.0
    local_response_norm: bool = False


@dataclass
class ViT(_Model):
    image_size: Count | tuple[Count, Count] | None = None  # null: the data's
    patch_size: Count = 4
    dim: Count = 64
    depth: Count = 4
    heads: Count = 4
    dropout: BelowOne = 0.0


@dataclass
class MLP(_Model):
    image_size: Count | tuple[Count, Count] | None = None  # null: the data's
    hidden_size: Count = 64
    depth: Count = 3
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    norm_after_activation: bool = False
    dropout: BelowOne = 0.0
    init_gain: Positive = 1.4142136


@dataclass
class CNN(_Model):
    width: Count = 16
    depth: Count = 4
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    norm_after_activation: bool = False


@dataclass
class DeepNet(_Model):
    depth: Annotated[int, Range(low=8)] = 20
    width: Count = 16
    residual: bool = True


@dataclass
class Recurrent(_Model):
    image_size: Count | tuple[Count, Count] | None = None  # null: the data's
    hidden_size: Count = 64


@dataclass
class DCGAN(_Model):
    num_classes: None = None  # there are no labels
    image_size: Count | tuple[Count, Count] | None = None  # null: the data's
    latent_size: Count = 100
    width: Count = 64
    base_size: Count = 4
    norm_at: Literal["paper", "generator", "discriminator", "everywhere", "nowhere"] = "paper"
    average_decay: BelowOne = 0.999


@dataclass
class Scenes:
    _target_: str
    batch_size: Count = 2
    eval_batch_size: Count = 32
    seed: Natural = 0
    split_seed: Natural = 0
    size: Count = 32
    num_train: Count = 400
    num_val: Count = 100
    num_test: Count = 200
    max_digits: Count = 4
    max_scale: Annotated[float, Range(low=1)] = 2.0
    noise: NotNegative = 0.1
    drop_last: bool = False


@dataclass
class Images:
    _target_: str
    source: str | None = None
    folder: str | None = None
    batch_size: Count = 32
    eval_batch_size: Count = 128
    seed: Natural = 0
    split_seed: Natural = 0
    val_fraction: Share = 0.1
    image_size: Count = 32
    in_channels: Literal[1, 3] = 3
    num_classes: Count | None = None
    image_column: str = "image"
    label_column: str = "label"
    mean: float | list[float] = 0.5
    std: Positive | list[Positive] = 0.25
    flip: bool = True
    min_crop: Annotated[float, Range(above=0, high=1)] = 0.5
    on_corrupt: Literal["raise", "skip"] = "raise"
    num_workers: Natural = 2
    drop_last: bool = False
    shard_by_class: bool = False
    test_split: str | None = None
    streaming: bool = False
    shuffle_buffer: Count = 1000
    num_train: Count | None = None


@dataclass
class Digits:
    _target_: str
    batch_size: Count = 32
    eval_batch_size: Count = 128
    seed: int = 0
    split_seed: int = 0
    val_fraction: Share = 0.2
    test_fraction: Share = 0.2
    augment: bool = True
    max_shift: Annotated[float, Range(low=0, below=8)] = 1.0
    max_rotation: Annotated[float, Range(low=0, below=180)] = 10.0
    max_scale: BelowOne = 0.1
    drop_last: bool = False
    shard_by_class: bool = False
    corruptions: dict[str, float] = field(default_factory=dict)


@dataclass
class FashionMNIST:
    _target_: str
    batch_size: Count = 32
    eval_batch_size: Count = 500
    seed: Natural = 0
    split_seed: Natural = 0
    folder: str | None = None
    val_fraction: Share = 0.1
    small: Count | None = None
    drop_last: bool = False
    corruptions: dict[str, float] = field(default_factory=dict)
    shard_by_class: bool = False


@dataclass
class SGD:
    _target_: str
    _partial_: Literal[True]
    lr: Positive
    momentum: NotNegative = 0.0
    dampening: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: bool = False


@dataclass
class Adam:
    _target_: str
    _partial_: Literal[True]
    lr: Positive = 1e-3
    betas: tuple[BelowOne, BelowOne] | None = None
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    amsgrad: bool = False


@dataclass
class AdamW:
    _target_: str
    _partial_: Literal[True]
    lr: Positive = 1e-3
    betas: tuple[BelowOne, BelowOne] | None = None
    eps: NotNegative = 1e-8
    weight_decay: NotNegative = 1e-2
    amsgrad: bool = False


@dataclass
class Cosine:
    _target_: str
    _partial_: Literal[True]
    warmup_fraction: BelowOne = 0.1
    final_fraction: Fraction = 0.0


@dataclass
class Task:
    _target_: str
    label_smoothing: BelowOne = 0.0


@dataclass
class GANTask:
    _target_: str
    loss: Literal["bce", "wgan_gp"] = "bce"
    penalty_weight: NotNegative = 10.0
    discriminator_steps: Count = 1
    quality_samples: Count = 1000
    seed: Natural = 0
    joint_batches: bool = False
    quality_epochs: Count = 30


@dataclass
class Trainer:
    _target_: str
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Count | Literal["auto"] = 1
    num_nodes: Count | Literal["auto"] = 1
    strategy: Any = "auto"
    precision: Literal[
        "64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed", "64", "32", 64, 32, 16, "16", "bf16"
    ] = "32-true"
    max_epochs: Count | Literal[-1] | None = None  # -1: until something else stops it
    min_epochs: Natural | None = None
    max_steps: Annotated[int, Range(low=-1)] = -1
    min_steps: Natural | None = None
    max_time: str | dict[str, int] | None = None
    gradient_clip_val: NotNegative | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    accumulate_grad_batches: Count = 1
    limit_train_batches: Count | Annotated[float, Range(above=0, high=1)] | None = None
    limit_val_batches: Batches | None = None
    limit_test_batches: Batches | None = None
    check_val_every_n_epoch: Count | None = 1
    val_check_interval: Batches | None = None
    num_sanity_val_steps: Annotated[int, Range(low=-1)] | None = None
    log_every_n_steps: Natural | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    detect_anomaly: bool = False
    overfit_batches: Batches = 0.0
    fast_dev_run: bool | Natural = False
    profiler: Literal["simple", "advanced", "pytorch"] | dict[str, Any] | None = None
    enable_progress_bar: bool = True
    enable_model_summary: bool = True
    enable_checkpointing: bool = True
    inference_mode: bool = True
    plugins: Any = None


@dataclass
class DDP:
    _target_: str
    timeout_s: Positive = 300.0
    process_group_backend: Literal["gloo", "nccl"] | None = None
    start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen"
    find_unused_parameters: bool = False
    gradient_as_bucket_view: bool = False
    static_graph: bool = False
    unequal_batches: Literal["fail", "train"] = "fail"
    batch_scheduling: bool = True


@dataclass
class EarlyStopping:
    _target_: str
    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: Natural = 3
    min_delta: float = 0.0
    verbose: bool = False
    strict: bool = True
    check_finite: bool = True
    stopping_threshold: float | None = None
    divergence_threshold: float | None = None
    check_on_train_epoch_end: bool | None = None
    log_rank_zero_only: bool = False


@dataclass
class ModelCheckpoint:
    _target_: str
    dirpath: str | None = None
    filename: str | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    save_top_k: Annotated[int, Range(low=-1)] = 1  # -1: all
    save_last: bool | Literal["link"] | None = None
    save_weights_only: bool = False
    save_on_exception: bool = False
    every_n_train_steps: Natural | None = None
    every_n_epochs: Natural | None = None
    save_on_train_epoch_end: bool | None = None
    auto_insert_metric_name: bool = True
    enable_version_counter: bool = True
    verbose: bool = False


@dataclass
class LocalLauncher:
    _target_: str
    name: str
    submitit_folder: str
    timeout_min: Count
    tasks_per_node: Count = 1
    cpus_per_task: Count | None = None
    gpus_per_node: Natural | None = None
    mem_gb: Count | None = None
    nodes: Literal[1] = 1
    stderr_to_stdout: bool = False


@dataclass
class SlurmLauncher(LocalLauncher):
    nodes: Count = 1  # type: ignore[assignment]
    partition: str | None = None
    qos: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    cpus_per_gpu: Count | None = None
    gpus_per_task: Count | None = None
    mem_per_gpu: str | None = None
    mem_per_cpu: str | None = None
    account: str | None = None
    signal_delay_s: Count = 120
    max_num_timeout: Natural = 0
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    array_parallelism: Count = 256
    setup: list[str] | None = None


TARGETS: dict[str, type] = {
    **{f"syncbn.models.resnet.resnet{depth}": ResNet for depth in (18, 34, 50, 101, 152)},
    **{f"syncbn.models.inception.{size}": Inception for size in ("bn_inception", "bn_inception_small")},
    **{f"syncbn.models.vit.{kind}": ViT for kind in ("vit", "llama_vit")},
    "syncbn.models.mlp.MLP": MLP,
    "syncbn.models.cnn.CNN": CNN,
    "syncbn.models.deep.DeepNet": DeepNet,
    "syncbn.models.dcgan.DCGAN": DCGAN,
    **{f"syncbn.models.pretrained.from_{package}": Pretrained for package in ("timm", "torchvision")},
    **{f"syncbn.models.recurrent.{kind}": Recurrent for kind in ("lstm", "gru")},
    **{f"syncbn.models.fcn.fcn_resnet{depth}": ResNet for depth in (18, 50)},
    "syncbn.data.DigitsDataModule": Digits,
    "syncbn.data.FashionMNISTDataModule": FashionMNIST,
    "syncbn.data.ScenesDataModule": Scenes,
    "syncbn.data.ImageDataModule": Images,
    "torch.optim.SGD": SGD,
    "torch.optim.Adam": Adam,
    "torch.optim.AdamW": AdamW,
    "syncbn.training.cosine_with_warmup": Cosine,
    "syncbn.training.ClassificationTask": Task,
    "syncbn.training.GANTask": GANTask,
    "syncbn.training.SegmentationTask": Task,
    "lightning.pytorch.Trainer": Trainer,
    "syncbn.training.ddp": DDP,
    "lightning.pytorch.callbacks.EarlyStopping": EarlyStopping,
    "lightning.pytorch.callbacks.ModelCheckpoint": ModelCheckpoint,
}
_SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher"
LAUNCHERS: dict[str, type] = {  # where `hydra.launcher` runs jobs elsewhere than in the sweep's own process
    f"{_SUBMITIT}.LocalLauncher": LocalLauncher,
    f"{_SUBMITIT}.SlurmLauncher": SlurmLauncher,
}

Node = dict[str, Any]


@dataclass
class Paths:
    output_dir: str


@dataclass
class Main:
    """The top of a composed config. The groups are checked each by its `name` or `_target_`."""

    norm: Node
    model: Node
    data: Node
    optimizer: Node
    trainer: Node
    task: Node
    task_name: str
    tags: list[str]
    seed: Annotated[int, Range(low=0, high=2**32 - 1)]
    train: bool
    test: bool
    resume: str | None
    output_root: str
    run_id: str
    paths: Paths
    threads: Count | Literal["auto"]
    elastic: Literal["keep", "refuse"] = "keep"
    nan_policy: Literal["stop", "skip", "rewind"] = "stop"
    check_ranks_every_n_steps: Count | None = None
    optimized_metric: str | None = None
    scheduler: Node | None = None
    logger: Node | None = None
    callbacks: Node | None = None
