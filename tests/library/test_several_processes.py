"""Two processes under torchrun: one mask, that of one process; one line where one of them fails."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import instant_soup
import two_processes
from helpers import CALLBACK_SETTINGS, ROOT, digest, loader, new_classifier, trainer
from instant_soup.sparsity import masks

pytestmark = pytest.mark.usefixtures("one_thread", "on_the_cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """Where both processes have written what they found."""
    made = tmp_path_factory.mktemp("two")
    bare = two_processes.network()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save(two_processes.looped(bare, bare, stop=7), made / "one.pt")
    for method, settings in two_processes.GO_ON.items():
        wide = two_processes.network(width=33)
        state = two_processes.looped(wide, wide, stop=7, **settings)
        torch.save(state, made / f"{method} of one.pt")
    torch.set_num_threads(threads)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(Path(two_processes.__file__)), str(made), str(tiny_bert)]
    clean = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, *command, *script], env=clean, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each process found."""
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


def test_all_end_with_one_mask_and_one_network_to_the_bit(found: list[dict]) -> None:
    first, second = found
    assert first.keys() == second.keys()
    results = [name for name, value in first.items() if not isinstance(value, str)]
    assert [name for name in results if first[name] != second[name]] == []
    prunable = 32 * 8 + 32 * 32
    for method in two_processes.METHODS:
        assert first[f"{method} kept"] == masks.number_kept(prunable, 0.6), method


def test_three_denoisers_on_two_processes_find_the_masks_of_one(found: list[dict]) -> None:
    """Equal batches have equal means, so the whole training is that of one process."""
    alone = two_processes.pruned(loader(), denoisers=3)
    assert found[0]["same batches"] == found[0]["another start"] == alone
    assert two_processes.pruned(loader(), denoisers=2) != alone


def test_adapters_learn_from_all_processes(found: list[dict]) -> None:
    adapters = {"retrain": "mask_lora", "lora_rank": 2, "denoisers": 0}
    assert found[0]["adapters"] == two_processes.pruned(loader(), **adapters)


def test_a_loop_goes_on_with_more_or_fewer_processes(folder: Path, found: list[dict]) -> None:
    whole = two_processes.looped(*[two_processes.network()] * 2)
    wanted = [digest(whole[0]), digest(whole[2]["tensors"])]
    assert found[0]["loop"] == found[0]["resumed from one"] == wanted
    state = torch.load(folder / "two.pt", weights_only=False)
    assert state[2]["step"] == 5
    back = two_processes.looped(*[two_processes.network()] * 2, state=state)
    assert [digest(back[0]), digest(back[2]["tensors"])] == wanted


@pytest.mark.parametrize("row", two_processes.IN_SHARDS)
def test_a_model_in_shards_ends_with_the_mask_of_whole_ones(found: list[dict], row: str) -> None:
    whole, shards = found[0][f"{row} in shards"]
    assert shards == whole


@pytest.mark.parametrize("method", two_processes.GO_ON)
def test_a_loop_in_shards_goes_on_in_one_process_and_the_other_way(
    folder: Path, found: list[dict], method: str
) -> None:
    settings = two_processes.GO_ON[method]
    wide = two_processes.network(width=33)
    wanted = digest(two_processes.looped(wide, wide, **settings)[2]["tensors"])
    assert found[0][f"{method} from one"] == found[0][f"{method} in copies"] == wanted
    state = torch.load(folder / f"{method} of shards.pt", weights_only=False)
    assert state[2]["step"] == 3
    wide = two_processes.network(width=33)
    back = two_processes.looped(wide, wide, state=state, **settings)
    assert digest(back[2]["tensors"]) == wanted


def test_what_is_learnt_in_shards_is_kept_whole(folder: Path) -> None:
    """Scores, their moments and the dense weights of movement pruning."""
    settings = two_processes.GO_ON["movement"]
    wide = two_processes.network(width=33)
    whole = two_processes.looped(wide, wide, stop=3, **settings)[2]["tensors"]
    held = torch.load(folder / "movement of shards.pt", weights_only=False)[2]["tensors"]
    assert whole.keys() == held.keys() and "scores.exp_avg.2.weight" in held
    for name, tensor in whole.items():
        torch.testing.assert_close(held[name], tensor, atol=1e-6, rtol=1e-4)


def test_a_validation_between_steps_changes_nothing_in_shards(found: list[dict]) -> None:
    wide = two_processes.network(width=33)
    whole = two_processes.looped(wide, wide, **two_processes.GO_ON["isp_plus"])[2]["tensors"]
    mask = {n.removeprefix("mask."): m.bool() for n, m in whole.items() if n.startswith("mask.")}
    kept, total = masks.count(mask)
    assert found[0]["validated"] == [digest(mask), 1 - kept / total, kept]
    assert found[0]["validated zeros"] == [False, False]


def test_a_mask_in_shards_lies_as_the_weights_do(found: list[dict]) -> None:
    assert found[0]["rows of the mask"] == [[[17, 8], [16, 33]], [[16, 8], [16, 33]]]
    assert found[0]["placed"] == ["(Shard(dim=0),)", True]
    wide = two_processes.network(width=33)
    optimizer = torch.optim.AdamW(wide.parameters())
    pruner = instant_soup.Pruner(wide, optimizer, method="one_shot", steps=12, sparsity=0.6)
    assert found[0]["whole mask"] == digest(pruner.mask)


def test_prune_goes_on_in_one_process(folder: Path, found: list[dict], capsys: Any) -> None:
    assert found[0]["stopped"] == "ValueError: a bad\nrow"
    more = {"checkpoint": folder / "kept", "denoisers": 0}
    alone = two_processes.pruned(loader(), denoisers=0)
    assert two_processes.pruned(loader(), **more) == alone
    assert "continuing from the checkpoint at step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "lines"),
    [
        (
            "bad setting",
            ["UserError: process 1 of 2: sparsity: 2", "UserError: sparsity: 2"],
        ),
        ("another setting", ["UserError: sparsity: 0.75 in process 1 and 0.5 in process 0"] * 2),
        ("bad step", ["UserError: process 1 of 2: ValueError: a bad row", "ValueError: a bad\n"]),
        (
            "bad look-ahead",
            ["UserError: process 1 of 2: ValueError: a bad row", "ValueError: a bad\n"],
        ),
        (
            "bad gradients",
            ["UserError: process 1 of 2: ValueError: a bad row", "ValueError: a bad\n"],
        ),
        ("sharded", ["UserError: model: only a shard of 0.weight is here (FSDP"] * 2),
        ("matrices of shards", ["UserError: method: rigl with these settings looks at"] * 2),
        ("budget of shards", ["UserError: method: isp_plus with these settings looks at"] * 2),
        ("retrain of shards", ["UserError: retrain: norms_and_biases of a model in shards"] * 2),
        ("some in shards", ["UserError: model: 0.weight is not dealt out by rows over all 2"] * 2),
        ("gradients apart", ["UserError: model: its gradients differ among 2 processes"] * 2),
    ],
)
def test_an_error_in_one_process_ends_all_with_one_line(
    found: list[dict], case: str, lines: list[str]
) -> None:
    for own, line in zip(found, lines, strict=True):
        assert own[case].startswith(line), own[case]


@pytest.mark.parametrize("method", ["isp", "movement"])
def test_a_trainers_run_goes_on_in_one_process(
    folder: Path, tiny_bert: Path, found: list[dict], method: str
) -> None:
    more = CALLBACK_SETTINGS if method == "isp" else {"sparsity": 0.6}
    model = new_classifier(tiny_bert, 2, 0)
    soup = instant_soup.InstantSoupCallback(method, **more)
    run = trainer(folder / method, model, soup, per_device_train_batch_size=16)
    run.train(resume_from_checkpoint=str(folder / method / "checkpoint-12"))
    kept, total = masks.count(soup.mask)
    assert total - kept == round(0.6 * total)
    if method == "isp":  # which had its last mask by then
        assert digest(soup.mask) == found[0]["callback isp"][1]


@pytest.mark.parametrize(
    ("name", "launcher"),
    [
        ("my_training.py", ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]),
        ("my_shards.py", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]),
    ],
)
def test_the_docs_scripts_run_in_two_processes(
    tmp_path: Path, name: str, launcher: list[str]
) -> None:
    """As docs/api.md starts them; without a GPU their processes talk by gloo."""
    blocks = (ROOT / "docs/api.md").read_text().split("```python\n")
    (snippet,) = [block.split("```")[0] for block in blocks if block.startswith(f"# {name}")]
    script = tmp_path / name
    told = "open(f'rank-{dist.get_rank()}', 'w').write(str(dist.get_world_size()))"
    script.write_text(f"{snippet}{told}\n")
    clean = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", *launcher, script],
        env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-5000:]
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert run.stdout.count("0.80") == 2  # their lines may be mixed
