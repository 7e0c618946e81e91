"""params.yaml, checked and resolved: one settings file for each stage that reads one.

A user's mistakes are refused here, before any work, in one line that names the key and what is
allowed. Each stage depends on its own resolved file only. So a changed parameter reruns what it
affects and nothing else.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from instant_soup.config.fields import (
    PRESETS,
    TEXT,
    Stored,
    as_number,
    as_text,
    check_names,
    check_value,
    default_of,
    defaults_of,
    number,
    one_of,
    setting,
    settings_of,
    some_of,
)
from instant_soup.config.sections import (
    ALL,
    MASK_LORA,
    NO_TEACHER,
    OF_RETRAINING,
    OF_TEACHER,
    SEED,
    Data,
    Pretraining,
    Recipe,
    Training,
)
from instant_soup.data.local import READS, resolve_data
from instant_soup.errors import UserError
from instant_soup.methods import registry
from instant_soup.methods.base import AtStart, Method
from instant_soup.methods.isp import ISP
from instant_soup.models.head import Head
from instant_soup.models.known import (
    PRETRAINED,
    BaseModel,
    family_of,
    prunable_weights,
    resolve_model,
)
from instant_soup.pipeline import code
from instant_soup.pipeline.budget import Budget
from instant_soup.pipeline.stage_files import (
    IDLE,
    CalibrateStage,
    EncodeStage,
    EvaluateStage,
    ExportStage,
    RetrainStage,
    SoupStage,
    TablesStage,
    TicketStage,
    TrainStage,
    WeakMasksStage,
)

S = TypeVar("S")
ROUNDS = 10  # of ISP in dvc.yaml: enough for any sparsity at any preset's rate
STAGES = Path("stages")
ENGINE = code.PACKAGE / "pipeline/run.py"
SHARED = (Data, Training, Pretraining)  # the sections that are no method's
# What ISP's weak masks and soups depend on.
OF_WEAK_MASKS = (
    *("look_ahead", "subset", "learning_rate_range", "draws", "weight_decay_range"),
    *("score", "denoisers"),
)
OF_SOUPS = ("combine", "own_mask", "score", "denoisers")
NOT_IN_VARIANTS = ("path",)  # where a dataset lies: its name says that it is local


@dataclass(frozen=True, kw_only=True)
class Top:
    """The keys of params.yaml that stand in no section."""

    sparsity: float = setting(
        "target: the share of prunable weights that go, between 0 and 1",
        number(0, 1, low_too=False, high_too=False),
    )
    dataset: str = setting("", TEXT)
    model: str = setting("", TEXT)
    seed: int = setting("of the head, the data order, dropout, denoisers and random masks", SEED)
    preset: str = setting("quick (minutes on two cores) | paper (Table 1)", one_of(*PRESETS))
    methods: list[str] = setting("rows beside dense and isp", some_of(*registry.selectable()))
    exports: list[str] = setting(
        "of these rows folders to take away, models/exported/ROW: dense, isp, …",
        some_of(*registry.methods()),
    )
    export_dtype: str = setting(
        "fp32 | bf16: their weights, and their compact files", one_of("fp32", "bf16")
    )


@dataclass(frozen=True)
class Params:
    """params.yaml, checked, every null replaced by the preset's value."""

    top: Top
    family: str
    data: Data
    training: Training
    pretraining: Pretraining | None  # of the models that are pre-trained here
    given: dict[str, dict[str, Any]]  # what each section of a method says itself

    def method(self, name: str) -> Method:
        """A method with its settings."""
        return registry.create(name, self.family, self.top.preset, self.given)

    @property
    def isp(self) -> ISP:
        """ISP with its settings."""
        isp = self.method(registry.ISP)
        assert isinstance(isp, ISP)
        return isp

    @property
    def rows(self) -> list[str]:
        """The rows of this run."""
        return [registry.DENSE, registry.ISP, *self.top.methods]


def check(params: Any) -> Params:
    """Check params.yaml and fill every null from the preset."""
    if not isinstance(params, dict):
        raise UserError("params.yaml: must be a mapping of keys to values")
    top_fields, sections = settings_of(Top), _sections()
    _named("", params, [*top_fields, *sections])
    for key, field in top_fields.items():
        if key not in params:
            allowed = field.metadata["rule"].allowed
            raise UserError(f"params.yaml: {key} is missing; allowed: {allowed}")
        check_value(f"params.yaml: {key}", params[key], field.metadata["rule"])
    top = Top(**{key: params[key] for key in top_fields})
    family = family_of(top.model)
    given: dict[str, dict[str, Any]] = {}
    for section, known in sections.items():
        own = {} if params.get(section) is None else params[section]
        if not isinstance(own, dict):
            raise UserError(f"params.yaml: {section}: must be a mapping of keys to values")
        _named(f"{section}.", own, known)
        given[section] = {k: as_number(value) for k, value in own.items() if value is not None}
        for key, value in given[section].items():
            name = f"params.yaml: {section}.{key}"
            if family not in known[key].metadata["families"]:
                raise UserError(
                    f"{name}: means nothing to {top.model}, which reads {READS[family]}; leave it "
                    "null"
                )
            if section == Pretraining.section and top.model not in PRETRAINED:
                raise UserError(f"{name}: only for model: {' | '.join(PRETRAINED)}")
            check_value(name, value, known[key].metadata["rule"])

    def of(kind: type[S]) -> S:
        own = given[kind.section]  # type: ignore[attr-defined]
        return kind(**{**defaults_of(kind, family, top.preset), **own})

    pretraining = of(Pretraining) if top.model in PRETRAINED else None
    return Params(top, family, of(Data), of(Training), pretraining, given)


def _sections() -> dict[str, dict[str, dataclasses.Field]]:
    """Section of params.yaml → key → its field."""
    found = {kind.section: settings_of(kind) for kind in SHARED}
    for section, keys in registry.sections().items():
        found[section] = {key: settings_of(m)[name] for key, (m, name) in keys.items()}
    return found


def _named(prefix: str, given: dict[str, Any], known: Any) -> None:
    try:
        check_names(given, known, prefix)
    except UserError as error:
        raise UserError(f"params.yaml: {error}") from None


def check_rows(params: Params) -> list[float]:
    """ISP's sparsity after each round.

    Raises:
        UserError: If a chosen row or export is not possible.
    """
    top, epochs = params.top, params.training.epochs
    sparsities = params.isp.sparsities(top.sparsity)
    if len(sparsities) > ROUNDS and params.isp.ramp is not None:
        raise UserError(
            f"params.yaml: isp.prunes: {params.isp.prunes} are more rounds than ISP has stages; "
            f"allowed: at most {ROUNDS}"
        )
    if len(sparsities) > ROUNDS:
        raise UserError(
            f"params.yaml: isp.compression_rate: {params.isp.compression_rate} takes "
            f"{len(sparsities)} rounds to sparsity {top.sparsity}; allowed: a rate that takes at "
            f"most {ROUNDS}"
        )
    for row in params.rows:
        try:
            params.method(row).check(top.sparsity, epochs)
        except UserError as error:
            raise UserError(f"params.yaml: {error}") from None
    for row in top.exports:
        if row not in params.rows:
            raise UserError(
                f"params.yaml: exports: {row} is no row of this run; allowed: "
                f"{' | '.join(params.rows)}"
            )
    _check_teacher(params)
    _check_retraining(params)
    size, processes = params.training.batch_size, params.training.processes
    if size % processes:
        raise UserError(
            f"params.yaml: training.processes: {processes} do not share training.batch_size {size} "
            "equally; allowed: a divisor of it"
        )
    return sparsities


def _check_teacher(params: Params) -> None:
    """UserError for a setting of a teacher where there is none."""
    if params.training.teacher == NO_TEACHER:
        _check_idle(params, OF_TEACHER[1:], "training.teacher: dense")


def _check_retraining(params: Params) -> None:
    """Raise UserError for a setting that is not read, or a row that cannot be retrained."""
    asked = params.training.retrain
    if asked == ALL:
        _check_idle(params, OF_RETRAINING[1:2], "training.retrain: norms_and_biases | mask_lora")
    if asked != MASK_LORA:
        _check_idle(params, OF_RETRAINING[2:], f"training.retrain: {MASK_LORA}")
    for row in params.rows if asked != ALL else ():
        if registry.method_named(row).finishes:
            raise UserError(
                f"params.yaml: training.retrain: {asked}: {row} trains nothing after its last "
                f"mask; allowed with it: {ALL}"
            )


def _check_idle(params: Params, keys: tuple[str, ...], use: str) -> None:
    """Raise UserError if a setting of training is not the default, but nothing reads it."""
    for key in keys:
        value, field = getattr(params.training, key), settings_of(Training)[key]
        if value != default_of(field, params.family, params.top.preset):
            raise UserError(
                f"params.yaml: training.{key}: {value} is for {use}; allowed without it: null"
            )


def check_sizes(params: Params, model: BaseModel) -> None:
    """Check that the model, if its files are here, is not too large for a row's settings.

    Raises:
        UserError: If it is.
    """
    weights = prunable_weights(model)
    if weights is None:
        return
    for row in params.rows:
        try:
            params.method(row).check_size(weights)
        except UserError as error:
            raise UserError(f"params.yaml: {error}") from None


def variant(params: Params, name: str) -> str:
    """What a row's settings change from the preset, readable: "isp.combine=vote …"."""
    parts = []
    shared: list[Any] = [params.data, params.training, params.pretraining]
    for own in [one for one in shared if one is not None]:
        for key, field in settings_of(type(own)).items():
            value = getattr(own, key)
            hidden = own is params.data and key in NOT_IN_VARIANTS
            default = default_of(field, params.family, params.top.preset)
            if value is not None and value != default and not hidden:
                parts.append(f"{own.section}.{key}={as_text(value)}")
    # The control is ISP's ticket, and depends on ISP's settings.
    method = params.method(name)
    for one in (method, *map(params.method, method.needs)):
        parts += registry.variant_parts(one, params.family, params.top.preset)
    return " ".join(parts)


@dataclass(frozen=True)
class Planned:
    """A stage's file: the script that reads it, its settings (none: not needed), its methods."""

    script: str
    settings: Stored | None
    methods: tuple[str, ...] = ()


def planned(raw: Any) -> dict[str, Planned]:
    """Resolve params.yaml into the settings of each stage: file name → what it holds."""
    params = check(raw)
    top, isp = params.top, params.isp
    data = resolve_data(top.dataset, params.family, params.data, model=top.model)
    model = resolve_model(top.model)
    sparsities = check_rows(params)
    check_sizes(params, model)
    images = params.family == "clip"
    recipe = Recipe(
        **vars(params.training), seed=top.seed, metric=data.metric, flip=images and data.flip
    )
    retrained, recipe = recipe, recipe.whole()
    dense = recipe.untaught()
    teacher = dense if recipe.taught else None
    # Of images no seed: the head is the text tower's, so all seeds start from the same network.
    head = Head(classes=data.labels, templates=data.templates) if images else Head(seed=top.seed)
    files = {
        "data": Planned("prepare_data", data),
        **{
            stage: Planned(stage, params.pretraining if top.model == name else None)
            for name, stage in PRETRAINED.items()
        },
        "base": Planned("prepare_model", model),
        "encode": Planned("encode_data", EncodeStage(max_length=params.data.max_length)),
        "start": Planned("attach_head", head),
        "dense": Planned("dense_finetune", TrainStage(recipe=dense, start="models/start")),
    }
    of_isps = isp.recipe(recipe)
    for i in range(ROUNDS):
        files |= _isp_round(i, isp, of_isps, teacher, sparsities)
    of_isp = len(sparsities), isp.denoisers
    last = f"models/isp/round_{len(sparsities) - 1}"
    files["retrain_isp"] = Planned(
        "sparse_retrain",
        RetrainStage(
            recipe=isp.recipe(retrained), start=last, teacher=teacher,
            isp_rounds=of_isp[0], isp_denoisers=of_isp[1],
        ),
    )  # fmt: skip
    for name in [*top.methods, *(n for n in needy() if n not in top.methods)]:
        method = params.method(name)
        if name not in top.methods:
            files[f"ticket_{name}"] = Planned("find_ticket", None)
            continue
        ticket = _ticket(method, top, method.recipe(recipe), teacher, head, of_isp)
        files[f"ticket_{name}"] = Planned("find_ticket", ticket, (name, *method.needs))
        folder = f"models/tickets/{name}/{'of_isp' if method.needs else 'found'}"
        last_phase = recipe if method.dense else retrained
        retrain = RetrainStage(
            recipe=method.recipe(last_phase), start="models/start", teacher=teacher, ticket=folder
        )
        files[f"retrain_{name}"] = Planned("sparse_retrain", retrain)
    for name in params.rows:
        identity = EvaluateStage(
            model=model.name,
            dataset=data.name,
            seed=top.seed,
            family=params.family,
            method=name,
            target_sparsity=0.0 if params.method(name).dense else top.sparsity,
            preset=top.preset,
            variant=variant(params, name),
            metric=data.metric,
            precision=recipe.precision,
            zero_shot=images and name == registry.DENSE,
        )
        files[f"evaluate_{name}"] = Planned("evaluate", identity)
    every = tuple(registry.methods())
    tables = TablesStage(methods=params.rows, metric=data.metric)
    files["tables"] = Planned("tables", tables, every)
    files["export"] = Planned("export", ExportStage(dtype=top.export_dtype), every)
    return files


def budget_of(raw: Any) -> Budget:
    """What the number of training steps must be enough for."""
    params = check(raw)
    rows = {row: params.method(row) for row in params.rows}
    denoisers = len(check_rows(params)) * params.isp.denoisers if "isp" in rows else 0
    return Budget(
        epochs=params.training.epochs,
        batch_size=params.training.batch_size,
        warmup=params.training.warmup,
        sparsity=params.top.sparsity,
        methods={row: registry.settings_in(method) for row, method in rows.items()},
        look_ahead=denoisers * params.isp.look_ahead,
    )


def needy() -> list[str]:
    """Methods that are made of another row, which dvc.yaml lists by name."""
    return [name for name, method in registry.methods().items() if method.needs]


def _isp_round(
    i: int, isp: ISP, recipe: Recipe, teacher: Recipe | None, sparsities: list[float]
) -> dict[str, Planned]:
    """The files of one of ISP's rounds: training, weak masks, soup."""
    names = (f"calibrate_{i}", f"weak_masks_{i}", f"soup_{i}")
    scripts = ("calibrate", "weak_mask", "mask_soup")
    if i >= len(sparsities):
        return {n: Planned(script, None) for n, script in zip(names, scripts, strict=True)}
    start = f"models/isp/round_{i - 1}" if i else "models/start"
    # Where all rounds together take a share of T, a round's length depends on their number.
    rounds = i + 1 if isp.nested else len(sparsities)
    calibrate = CalibrateStage(
        recipe=recipe, start=start, teacher=teacher, schedule=isp.timing, rounds=rounds
    )
    # Its rate is constant over a number of steps: of training, no more enters.
    ahead = dataclasses.replace(
        recipe.untaught(), epochs=0.0, weight_decay=0.0, warmup=0.0, evaluations=0, metric="",
        cycles=1, lowest_rate=0.0,
    )  # fmt: skip
    weak = WeakMasksStage(
        recipe=ahead, start=start, sparsity=sparsities[i], isp=isp.some(*OF_WEAK_MASKS)
    )
    soup = SoupStage(
        start=start,
        sparsity=sparsities[i],
        # The last round is adjusted in any case: the target's sparsity is exact.
        adjust=isp.adjust == "every_round" or i == len(sparsities) - 1,
        seed=recipe.seed,
        isp=isp.some(*OF_SOUPS),
    )
    settings = (calibrate, weak, soup)
    return {
        name: Planned(script, one, (registry.ISP,))
        for name, script, one in zip(names, scripts, settings, strict=True)
    }


def _ticket(
    method: Method,
    top: Top,
    recipe: Recipe,
    teacher: Recipe | None,
    head: Head,
    of_isp: tuple[int, int],
) -> TicketStage:
    """What a method's ticket depends on: seed and training only where it looks at them."""
    seeded, trains = "seed" in method.looks_at, "data" in method.looks_at
    if isinstance(method, AtStart):  # gradients and inputs are those of a network without a teacher
        recipe, teacher = recipe.untaught(), None
    return TicketStage(
        method=method.name,
        settings=registry.settings_in(method),
        sparsity=top.sparsity,
        seed=top.seed if seeded and not trains else None,
        recipe=recipe if trains else None,
        teacher=teacher if trains and not method.needs else None,
        isp_rounds=of_isp[0] if method.needs else None,
        isp_denoisers=of_isp[1] if method.needs else None,
        head=dataclasses.replace(head, seed=top.seed) if method.needs else None,
    )


def plan(raw: Any) -> dict[str, dict[str, Any]]:
    """The contents of each stage's file: name → plain values."""
    return {name: _contents(one) for name, one in planned(raw).items()}


def plan_with_code(raw: Any) -> dict[str, dict[str, Any]]:
    """Plan, and add to each file that is needed the digest of the sources that its stage runs.

    Files of stages that train also get the digest of the engine's sources, as the store shares
    trainings among stages.
    """
    files, found = planned(raw), {}
    with code.remembered():
        engine = code.digest([ENGINE])
        for name, one in files.items():
            contents = _contents(one)
            if one.settings is not None:
                roots = [STAGES / f"{one.script}.py", *map(registry.file_of, one.methods)]
                digests = {"code": code.digest(roots)}
                contents |= digests | ({"engine": engine} if "engine" in contents else {})
            found[name] = contents
    return found


def _contents(one: Planned) -> dict[str, Any]:
    return IDLE if one.settings is None else one.settings.contents()
