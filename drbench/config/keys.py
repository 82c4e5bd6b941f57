"""All keys of benchmark files, with their types and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from drbench.recipe import Recipe


@dataclass
class Data:
    name: str = "digits"
    split: str = "test"
    subset: str = "all"  # all | firstN | everyN | AtoB | randomNseedS | ids:FILE | a name of drbench/data/subsets.yaml
    root: str | None = None  # folder of the data set's files; null: its sub-folder of DRBENCH_DATA
    preprocessing: str | None = None  # ImageNet: how photographs become squares; null: resize256-crop224


@dataclass
class DefenseSpec:
    name: str = "???"
    variant: str = ""  # printed in tables beside the name
    args: dict[str, Any] = field(default_factory=dict)
    checkpoint: list[str] = field(default_factory=list)  # names, or files, of weights, see `drbench.weights`


@dataclass
class Certify:
    kind: str = "gaussian"  # gaussian | cascade | lipschitz
    mode: str = "fixed"  # fixed | curtailed | sequential | hybrid, see `drbench.stats.stopping`
    radii: list[float] | None = None  # targets of the other modes, pixel units; null: 0, 0.25, ... to the ceiling
    give_up: float = 0.01  # sequential, hybrid: a target is given up when n draws would reach it with less chance
    sigma: float = 0.5  # pixel units; of a cascade its largest scale, filled in
    sigmas: list[float] | None = None  # cascade: scales, increasing
    p0: float = 0.5  # cascade: the first scale with a class above p0 decides
    protocol: str = "sound"  # cascade: sound | paper_code, see `stats.decide_cascade`
    n0: int = 100  # selection draws
    n: int = 100_000  # estimation draws; lipschitz: calls whose logits are averaged
    alpha: float = 0.001  # failure probability of each certificate
    block: int = 100  # draws per random stream; part of the identity of the noise
    select: str = "votes"  # votes: class by n0 draws | label: the true class is tested, without selection draws
    sequence: str = "e-process"  # sequential, hybrid: e-process | union, see `stats.decide_gaussian`
    tolerance: float | None = None  # other modes than fixed: stop all images when no column can move by more; a share
    noise: str = "gaussian"  # gaussian | uniform | laplace, of standard deviation sigma, see `drbench.stats.noises`
    sampler: str = "float"  # float | grid | sound, see `drbench.certifiers.noise`
    bound: str = "clopper-pearson"  # clopper-pearson | randomized, see `stats.randomized_upper`
    rounding: str = "none"  # none | significant3 | decimal4: radii as the protocol's program prints them


@dataclass
class Attack:
    norm: str = "linf"  # linf | l2 | l1 | stadv
    eps: Any = "8/255"  # pixel units, a number or a fraction; of stadv the displacement in pixels
    preset: str = "standard"  # smoke | fast | standard | thorough | autoattack
    attacks: list[Any] | None = None  # instead of the preset: [{attack: pgd, loss: margin, steps: 100, draws: 16}, ...]
    sigma: float = 0.0  # noise at which the defense is deployed, pixel units; 0: clean images
    decision: str = "single"  # single | majority | mean_prob
    decision_draws: int = 1  # of one answer
    evaluations: int = 100  # answers to each image in the final evaluation, of a randomised defense
    select: int = 50  # draws that choose among candidates, of a randomised defense
    cascade: list[float] | None = None  # noise levels of a cascade, deployed with `decision_draws` votes at each
    sources: dict[str, Any] | None = (
        None  # other defenses to transfer from: {cnn: {name: undefended, checkpoint: [..]}}
    )
    audit: int | None = None  # images on which attacks are compared, to check them; null: by preset
    probe: int | None = None  # images on which the defense is probed, cheaply; null: 8, if attacks are compared on any
    worst_of: int = 10  # tries of the attacker in worst-of-M; at most `evaluations`


@dataclass
class Train:
    checkpoint: str = "???"  # name under which the weights are written
    start: list[str] = field(default_factory=list)  # weights to start from; none: from scratch
    recipe: Recipe = field(default_factory=Recipe)


@dataclass
class Run:
    seed: int = 0
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    batch_rows: Any = "auto"  # rows per network call; auto: found by a short measured search
    threads: int | None = None  # CPU threads; null: torch's default
    channels_last: bool = False
    precision: str = "float32"  # float32 | bfloat16 | float16: autocast of the networks
    compile: bool = False  # torch.compile of the networks
    cuda_graphs: bool = False  # with compile, on CUDA: replayed as graphs
    executor: str = "inline"  # inline | processes | ray | slurm: who does the work, see `drbench.executors`
    workers: Any = "auto"  # of the other executors; auto: one for each accelerator, else one for each core
    timeout: float | None = None  # seconds without an answer after which a worker is replaced; null: never
    slurm: dict[str, Any] = field(default_factory=dict)  # parameters of the jobs, as submitit names them
    fsync: bool = True  # every row is on disk before the next
    listeners: list[str] = field(default_factory=list)  # tensorboard | wandb | mlflow | of other packages


@dataclass
class Config:
    """One benchmark file, resolved."""

    title: str = ""
    protocol: str = ""  # constants of a paper's evaluation, see `drbench.config.protocols`; keys of this file win
    task: str = "certify"  # certify | attack | train
    data: Data = field(default_factory=Data)
    defense: DefenseSpec = field(default_factory=DefenseSpec)
    certify: Certify = field(default_factory=Certify)
    attack: Attack = field(default_factory=Attack)
    train: Train | None = None
    run: Run = field(default_factory=Run)
    sweep: dict[str, Any] = field(default_factory=dict)


# certify.kind -> keys of `certify` that belong to it alone; those of the other kinds are not part of its identity.
OWN_KEYS = {"gaussian": ("sigma",), "cascade": ("sigmas", "p0", "protocol"), "lipschitz": ()}
