"""What tests/library/test_several_processes.py has two processes do; started by torchrun.

Each of them writes what it found into its own file of the folder that is given.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler

import instant_soup
from helpers import (
    CALLBACK_SETTINGS,
    PRUNE_SETTINGS,
    digest,
    loader,
    loss,
    new_classifier,
    products,
    trainer,
)
from instant_soup.training import exchange

SHORT = {**PRUNE_SETTINGS, "steps": 12}
# Of scores and masks that come from what each process sees for itself: name → settings.
METHODS: dict[str, dict[str, Any]] = {
    "isp": {"denoisers": 3, "score": "fisher"},
    "snip": {},
    "grasp": {},
    "wanda": {},
    "sparsegpt": {},
    "layer_budgets": {"budget": "ecoflap"},
    "obert": {"gradient_batches": 3},
    "movement": {},
    "granet": {"every": 4},
    "platon": {"every": 2},
    "rigl": {"every": 4},
    "random": {},
    "early_bird": {"every": 1.0, "window": 1},
}
# Those that take a model in shards: row → settings.
IN_SHARDS: dict[str, dict[str, Any]] = {
    "one_shot": {},
    "progressive": {},
    "gmp": {"prunes": 3, "cycles": 1},
    "isp_plus": {},
    "platon": {"every": 2},
    "hard platon": {"every": 2, "zeros": "hard"},
    "ac_dc": {"phase": 0.1, "score": "fisher"},
    "layerwise": {},
    "uniform progressive": {"budget": "uniform"},
    "erdos_renyi isp_plus": {"budget": "erdos_renyi"},
    "lamp": {},
    "lamp isp_plus": {"budget": "lamp"},
    "lamp layer_budgets": {"budget": "lamp"},
    "granet": {"every": 4},
    "fisher granet": {"every": 2, "score": "fisher"},
    "rigl": {"every": 4},
    "movement": {"every": 2},
    "global movement": {"every": 2, "scope": "global"},
    "soft_movement": {"every": 2, "threshold": 0.499, "penalty": 1.0},
    "smp": {"every": 2},
    "lottery_jackpots": {"every": 2},
    "bip": {"every": 2, "implicit": 1.0},
}
# Of these, with and without a memory beside the mask, what goes on elsewhere: method → settings.
GO_ON = {
    method: {"denoisers": None, "look_ahead": None, "method": method, **IN_SHARDS[method]}
    for method in ("isp_plus", "movement")
}


def network(seed: int = 0, width: int = 32) -> nn.Sequential:
    """A perceptron without dropout, which each process would draw for its own rows."""
    torch.manual_seed(seed)
    layers = [nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 2))


def pruned(batches: Any, of: Callable = loss, model: Any = None, **changes: Any) -> list[str]:
    """Digests of the mask and the weights that `prune` leaves."""
    found = instant_soup.prune(model or network(), batches, of, **{**SHORT, **changes})
    return [digest(found.mask), digest(found.model.state_dict())]


def looped(model: Any, bare: nn.Module, state: Any = None, stop: int = 12, **own: Any) -> Any:
    """A loop of one's own up to a step; what a checkpoint holds then."""
    optimizer = torch.optim.AdamW(bare.parameters(), lr=3e-3)
    if state is not None:
        bare.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    settings = {"method": "isp", "steps": 12, "sparsity": 0.6, "denoisers": 3, "look_ahead": 3}
    given = {name: value for name, value in {**settings, **own}.items() if value is not None}
    pruner = instant_soup.Pruner(
        model, optimizer, batches=loader(), loss=loss, resume=state and state[2], **given
    )
    x, y = products().tensors
    for step in range(pruner.step, stop):
        rows = torch.randint(len(x), (16,), generator=torch.Generator().manual_seed(step))
        loss(model, (x[rows], y[rows])).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
    return bare.state_dict(), optimizer.state_dict(), pruner.state_dict()


def dealt_out(model: nn.Sequential, mesh: Any = None) -> nn.Module:
    """The model in shards, layer by layer."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def looped_in_shards(width: int, state: Any = None, mesh: Any = None, **own: Any) -> Any:
    """The loop around a model in shards; takes and returns whole tensors."""
    model = dealt_out(network(width=width), mesh)

    def dealt(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.ndim):
            return value
        return distribute_tensor(value, model[0].weight.device_mesh, model[0].weight.placements)

    if state is not None:
        state = [*tree_map(dealt, state[:2]), state[2]]
    found = looped(model, model, state, **own)
    return tree_map(lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t, found)


def said(function: Callable, *given: Any, **more: Any) -> str:
    """What a call that fails says."""
    try:
        function(*given, **more)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def failing(at: int, number: int = 1) -> Callable:
    """A loss that fails in one process, at its n-th call."""
    calls = [0]

    def fails(model: nn.Module, batch: Any) -> torch.Tensor:
        calls[0] += 1
        if dist.get_rank() == number and calls[0] == at:
            raise ValueError("a bad\nrow")
        return loss(model, batch)

    return fails


def everything(folder: Path) -> dict[str, Any]:
    """All that is asked of this process."""
    own, found = dist.get_rank(), {}
    data = products()
    share = DataLoader(data, batch_size=8, sampler=DistributedSampler(data))

    def criterion(weights: Any, gradients: Any, state: Any) -> Any:
        torch.manual_seed(own)
        return {n: w.abs() + torch.rand_like(w) for n, w in weights.items()}

    found["same batches"] = pruned(loader(), denoisers=3)
    found["another start"] = pruned(loader(), denoisers=3, model=network(own))
    for method, more in METHODS.items():
        changes = {"denoisers": None, "look_ahead": None, "method": method, **more}
        given = {name: value for name, value in {**SHORT, **changes}.items() if value is not None}
        result = instant_soup.prune(network(), share, loss, **given)
        found[method] = [digest(result.mask), digest(result.model.state_dict())]
        kept = sum(int(one.sum()) for one in result.mask.values())
        found[f"{method} kept"] = kept
    own_scores = {**SHORT, "method": criterion}
    for name in ("denoisers", "look_ahead"):
        del own_scores[name]
    result = instant_soup.prune(network(), share, loss, **own_scores)
    found["criterion"] = [digest(result.mask), digest(result.model.state_dict())]

    adapters = {"retrain": "mask_lora", "lora_rank": 2, "denoisers": 0}
    found["adapters"] = pruned(loader(), **adapters)
    normed = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 2)
    )
    found["statistics"] = pruned(share, model=normed, denoisers=0)

    def in_ddp(**more: Any) -> Any:
        bare = network()
        return looped(DistributedDataParallel(bare), bare, **more)

    whole = in_ddp()
    found["loop"] = [digest(whole[0]), digest(whole[2]["tensors"])]
    half = in_ddp(stop=5)
    again = in_ddp(state=torch.load(folder / "one.pt", weights_only=False))
    found["resumed from one"] = [digest(again[0]), digest(again[2]["tensors"])]
    if own == 0:
        torch.save(half, folder / "two.pt")

    def apart() -> None:
        bare, (x, y) = network(), data.tensors
        optimizer = torch.optim.AdamW(bare.parameters())
        pruner = instant_soup.Pruner(bare, optimizer, method="one_shot", steps=12)
        loss(bare, (x[own::2], y[own::2])).backward()
        pruner.after_backward()

    for row, more in IN_SHARDS.items():  # one of 33 rows cannot be halved
        own_mask = {"denoisers": None, "look_ahead": None, "method": row.split()[-1], **more}
        whole = looped(DistributedDataParallel(bare := network(width=33)), bare, **own_mask)
        shards = looped_in_shards(33, **own_mask)
        found[f"{row} in shards"] = [digest(s[2]["tensors"]) for s in (whole, shards)]
        far = max(float((shards[0][n] - w).abs().max()) for n, w in whole[0].items())
        assert far < 1e-6, (row, far)
        for name in ("0.weight", "2.weight"):
            pruned_here = shards[2]["tensors"][f"mask.{name}"] == 0
            assert not shards[0][name][pruned_here].any(), row
    copies = init_device_mesh("cpu", (2, 1), mesh_dim_names=("copies", "shards"))
    for method, settings in GO_ON.items():
        found[f"{method} in copies"] = digest(
            looped_in_shards(33, mesh=copies, **settings)[2]["tensors"]
        )
    validated = fully_shard(network(width=33))  # which a forward pass alone leaves whole
    optimizer = torch.optim.AdamW(validated.parameters(), lr=3e-3)
    validated(data.tensors[0])
    pruner = instant_soup.Pruner(validated, optimizer, method="isp_plus", steps=12, sparsity=0.6)
    for step in range(12):
        if step == 8:
            state = pruner.state_dict()
            with torch.no_grad():
                validated(data.tensors[0])
            pruner.load_state_dict(state)
        rows = torch.randint(96, (16,), generator=torch.Generator().manual_seed(step))
        loss(validated, [one[rows] for one in data.tensors]).backward()
        pruner.after_backward()
        optimizer.step()
        with torch.no_grad():
            validated(data.tensors[0])
        pruner.after_step()
        optimizer.zero_grad()
    with torch.no_grad():
        validated(data.tensors[0])
    kept = {name: one.full_tensor() for name, one in pruner.mask.items()}
    found["validated"] = [digest(kept), pruner.sparsity, sum(int(m.sum()) for m in kept.values())]
    weights = {n: w.full_tensor() for n, w in validated.state_dict().items()}
    found["validated zeros"] = [bool(weights[n][~m].any()) for n, m in kept.items()]
    for method, settings in GO_ON.items():
        state = torch.load(folder / f"{method} of one.pt", weights_only=False)
        found[f"{method} from one"] = digest(looped_in_shards(33, state, **settings)[2]["tensors"])
        half = looped_in_shards(33, stop=3, **settings)
        if own == 0:
            torch.save(half, folder / f"{method} of shards.pt")

    def of_shards(model: nn.Module, **more: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        given = {"method": "isp_plus", "steps": 12, "sparsity": 0.6, **more}
        return instant_soup.Pruner(model, optimizer, **given)

    one_layer = network()
    fully_shard(one_layer[2])
    found["matrices of shards"] = said(
        of_shards, dealt_out(network()), method="rigl", start="erdos_renyi"
    )
    probed = {"budget": "ecoflap", "batches": loader(), "loss": loss}
    found["budget of shards"] = said(of_shards, dealt_out(network()), **probed)
    found["retrain of shards"] = said(of_shards, dealt_out(network()), retrain="norms_and_biases")
    found["some in shards"] = said(of_shards, one_layer)
    wide = dealt_out(network(width=33))
    mask = of_shards(wide, method="one_shot").mask
    found["whole mask"] = digest({name: kept.full_tensor() for name, kept in mask.items()})
    shapes = [list(kept.to_local().shape) for kept in mask.values()]
    found["rows of the mask"] = exchange.gathered(shapes)
    row = (wide[0].weight.full_tensor() != 0) == mask["0.weight"].full_tensor()
    found["placed"] = [str(mask["0.weight"].placements), bool(row.all())]
    found["gradients apart"] = said(apart)
    found["sharded"] = said(pruned, loader(), model=fully_shard(network()))
    found["bad setting"] = said(pruned, loader(), sparsity=2 if own else 0.5)
    found["another setting"] = said(pruned, loader(), sparsity=0.5 + own / 4)
    found["bad step"] = said(pruned, loader(), failing(3), denoisers=0)
    found["bad look-ahead"] = said(pruned, loader(), failing(5), mask_finding=0.1, denoisers=2)
    found["bad gradients"] = said(instant_soup.prune, network(), loader(), failing(2), steps=4,
                                  learning_rate=1e-3, method="snip")  # fmt: skip
    kept_in = {"checkpoint": folder / "kept", "denoisers": 0}
    found["stopped"] = said(pruned, loader(), failing(9, 0), **kept_in)
    dist.barrier()

    bert = Path(sys.argv[2])
    for method in ("isp", "movement"):
        more = CALLBACK_SETTINGS if method == "isp" else {"sparsity": 0.6}
        model = new_classifier(bert, 2, 0)
        soup = instant_soup.InstantSoupCallback(method, **more)
        run = trainer(folder / method, model, soup, save_strategy="steps", save_steps=12)
        run.train()
        found[f"callback {method}"] = [digest(model.state_dict()), digest(soup.mask)]

    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    bare = network()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=3e-3)
    model, optimizer, batches = accelerator.prepare(bare, optimizer, loader())
    pruner = instant_soup.Pruner(model, optimizer, method="granet", steps=6, sparsity=0.6, every=1)
    for _, batch in zip(range(6), [*batches, *batches], strict=False):
        accelerator.backward(loss(model, batch))
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
    found["accelerate"] = [digest(bare.state_dict()), digest(pruner.mask), exchange.size()]
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(everything(folder)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
