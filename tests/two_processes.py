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
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
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


def network(seed: int = 0) -> nn.Sequential:
    """A perceptron without dropout, which each process would draw for its own rows."""
    torch.manual_seed(seed)
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()]
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
    pruner = instant_soup.Pruner(
        model, optimizer, batches=loader(), loss=loss, resume=state and state[2],
        **{**settings, **own},
    )  # fmt: skip
    x, y = products().tensors
    for step in range(pruner.step, stop):
        rows = torch.randint(len(x), (16,), generator=torch.Generator().manual_seed(step))
        loss(model, (x[rows], y[rows])).backward()
        pruner.after_backward()
        optimizer.step()
        pruner.after_step()
        optimizer.zero_grad()
    return bare.state_dict(), optimizer.state_dict(), pruner.state_dict()


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
