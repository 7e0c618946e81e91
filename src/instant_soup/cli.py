"""`instant-soup`: inspect masks and pruned models; compare, export, apply and evaluate them.

A command imports its heavy libraries itself, so that --help answers at once.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from instant_soup.errors import UserError
from instant_soup.files import check_new, path_of

Command = Callable[[argparse.Namespace], None]

OPTIONAL = {  # package → the extra that brings it; `pip install .` does without
    **dict.fromkeys(("open_clip", "torchvision"), "clip"),
    **dict.fromkeys(("dvc", "fontTools", "matplotlib", "mlflow", "psutil"), "pipeline"),
}

INSPECT = """\
examples:
  instant-soup inspect models/retrained/isp/mask.safetensors
  instant-soup inspect models/exported/isp --plot sparsity.png
  instant-soup inspect models/exported/isp/compact.safetensors --near-zero 1e-4
  instant-soup inspect bert/model.safetensors --json | jq .sparsity

In a checkpoint, inspect counts the matrices that a mask.safetensors beside it names. Without such a
file it counts the weight matrices in numbered blocks. A weight w is near zero if 0 < |w| < the
threshold."""
COMPARE = """\
examples:
  instant-soup compare models/retrained/isp models/retrained/one_shot
  instant-soup compare a/mask.safetensors b/mask.safetensors --json | jq .jaccard

A MASK is a mask file, a compact file, or a checkpoint (its weights that are not zero).

  overlap   kept by both / kept by the one that keeps fewer
  cosine    kept by both / √(kept by one · kept by the other)
  jaccard   kept by both / kept by either
  hamming   share of all weights that one keeps and the other prunes"""
EXPORT = """\
examples:
  instant-soup export isp
  instant-soup export isp --dtype bf16 --to ../isp-sst2

Run it in the repository, after `dvc repro`. transformers, or open_clip's local-dir:, loads the
folder as it is. The default of --dtype is export_dtype in params.yaml."""
APPLY = """\
examples:
  instant-soup apply models/exported/isp ../bert-base-uncased --to ../bert-base-pruned
  instant-soup apply mask.safetensors model.safetensors --to pruned

The weights that the mask prunes become zero in the copy. All other files of the model's folder come
along, except its weights in other formats, which are dense. The command lists these."""
EVALUATE = """\
examples:
  instant-soup evaluate models/exported/isp reviews-sentiment
  instant-soup evaluate models/exported/isp local:../my-reviews --columns text --label stars
  instant-soup evaluate ../my-llama-pruned local:../my-texts
  instant-soup evaluate ../isp-sst2 sst2 --path ../glue/sst2
  instant-soup evaluate ../isp-mnist svhn --json | jq .metrics.accuracy

The score is on the dataset's test split. If there is none, a part of the training rows is cut off,
as in the pipeline. A local folder has the layout of one to train on. An image model can take the
classes and prompts of another known dataset. A text model's classes must be the dataset's."""


ONESHOT = """\
examples:
  instant-soup oneshot models/pretrained_lm reviews-text
  instant-soup oneshot hub:openai-community/gpt2 wikitext2 --methods wanda --patterns 2:4
  instant-soup oneshot ../llama wikitext2 --methods sparsegpt --sparsities 0.5 --stream --to pruned

The usual methods are magnitude (ranks within each matrix), wanda (within each row), sparsegpt,
magnitude-global and fisher (both rank all matrices together). Two more are magnitude-rows and
fisher-rows. With --stream a block's weights are in memory only while it is pruned; fisher needs the
whole model. Calibration text comes from the training split. Perplexity is on the test split."""


def inspect(options: argparse.Namespace) -> None:
    """Show sparsity by layer and matrix type, near-zero weights and N:M patterns."""
    from instant_soup.tickets import inspect

    threshold = inspect.NEAR_ZERO if options.near_zero is None else options.near_zero
    if not 0 <= threshold < math.inf:
        raise UserError(
            f"--near-zero: {threshold:g} is not allowed; allowed: a finite number from 0"
        )
    numbers = inspect.statistics(inspect.read(options.path, threshold))
    if options.plot:
        from instant_soup.reports.figures import matrix_sparsity

        matrix_sparsity(numbers, options.plot)
    if options.json:
        return write(numbers | {"threshold": threshold})
    inspect.show(numbers, str(options.path), threshold)


def compare(options: argparse.Namespace) -> None:
    """Show how two masks of one model agree, over all and by layer."""
    from instant_soup.tickets import inspect

    a, b = (inspect.read(path).mask for path in (options.one, options.other))
    numbers = inspect.compare(a, b)
    if options.json:
        return write(numbers)
    inspect.show_comparison(numbers, f"{options.one} and {options.other}")


def export(options: argparse.Namespace) -> None:
    """Write a finished method of this repository into a folder to take away."""
    from instant_soup.tickets import export

    if options.to:
        check_new(options.to)
    elif options.dtype:  # there lies what the stage makes, by params.yaml
        raise UserError(f"--to: missing; allowed with --dtype {options.dtype}: a new folder")
    folder = options.to or export.EXPORTED / options.method
    ticket = export.export(options.method, folder, options.dtype)
    if options.json:
        return write({"folder": str(folder), **ticket})
    print(f"{folder}: {ticket['method']} of {ticket['model']} on {ticket['dataset']}")


def apply(options: argparse.Namespace) -> None:
    """Copy a checkpoint, with the weights that a mask prunes set to zero."""
    from instant_soup.sparsity import masks
    from instant_soup.tickets import weights

    check_new(options.to)
    left_out = weights.left_out(options.model)
    mask = weights.apply(options.mask, options.model, options.to)
    sparsity, total = masks.sparsity(mask), masks.count(mask)[1]
    if options.json:
        told = {"folder": str(options.to), "sparsity": sparsity, "weights": total}
        return write({**told, "left_out": left_out})
    print(f"{options.to}: {100 * sparsity:.2f} % of {total:,} prunable weights are zero")
    if left_out:
        print(f"left out, as their weights are dense: {', '.join(left_out)}")


def evaluate(options: argparse.Namespace) -> None:
    """Score an exported folder on the test split of a dataset."""
    from instant_soup.tickets import evaluate

    found = evaluate.evaluate(
        options.ticket,
        options.dataset,
        options.columns,
        options.label,
        options.precision,
        options.path,
    )
    write(found) if options.json else evaluate.show(found)


def oneshot(options: argparse.Namespace) -> None:
    """A language model's perplexity after one-shot pruning, without training."""
    from instant_soup.files import new_folder
    from instant_soup.library import one_shot
    from instant_soup.tickets import card

    refused = one_shot.WHOLE if options.stream else ()
    methods = options.methods or [name for name in one_shot.USUAL if name not in refused]
    given = options.sparsities is not None or options.patterns is not None
    sparsities = (options.sparsities or []) if given else one_shot.SPARSITIES
    patterns = (options.patterns or []) if given else one_shot.PATTERNS
    if options.to:
        check_new(options.to)
    with new_folder(options.to) if options.to else contextlib.nullcontext() as folder:
        found = one_shot.perplexities(
            options.model, options.dataset, methods, sparsities, patterns,
            column=options.column, length=options.length, blocks=options.blocks,
            streamed=options.stream, to=folder,
        )  # fmt: skip
        if options.json:
            write({"rows": list(found)})
        else:
            show_perplexities(found)
        if folder:
            card.write_one_shot(folder)


def show_perplexities(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as they come: a large model's take hours."""
    for i, row in enumerate(rows):
        if i == 0:
            print(f"{'method':<18}{'sparsity':>9}{'pattern':>9}{'perplexity':>13}")
        share, value = f"{row['sparsity']:.2%}", f"{row['perplexity']:.2f}"
        print(f"{row['method']:<18}{share:>9}{row['pattern']:>9}{value:>13}", flush=True)


def write(numbers: dict[str, Any]) -> None:
    """Print JSON."""
    print(json.dumps(numbers, indent=2))


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    top = argparse.ArgumentParser(
        prog="instant-soup",
        description="Inspect masks and pruned models; compare, export, apply and evaluate them.",
        epilog="instant-soup COMMAND --help has examples. Exit status: 0; 1 for an error; 2 for "
        "wrong usage.",
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(command: Command, examples: str) -> argparse.ArgumentParser:
        words = command.__doc__ or ""
        own = commands.add_parser(
            command.__name__,
            help=words,
            description=words,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(command=command)
        return own

    own = add(inspect, INSPECT)
    own.add_argument("path", type=Path, help="mask, checkpoint or compact file, or its folder")
    own.add_argument(
        "--near-zero", type=float, metavar="W", help="threshold of near-zero weights (default 0.01)"
    )
    own.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="write a figure of sparsity by layer and type"
    )
    add_json(own)
    own = add(compare, COMPARE)
    own.add_argument("one", type=Path, metavar="MASK", help="one mask")
    own.add_argument("other", type=Path, metavar="MASK", help="the other mask")
    add_json(own)
    own = add(export, EXPORT)
    own.add_argument("method", metavar="METHOD", help="dense, isp or another method that ran")
    own.add_argument("--dtype", choices=["fp32", "bf16"], help="type of the weights")
    own.add_argument(
        "--to", type=Path, metavar="FOLDER", help="new folder (default models/exported/METHOD)"
    )
    add_json(own)
    own = add(apply, APPLY)
    own.add_argument("mask", type=Path, metavar="MASK", help="mask or compact file, or its folder")
    own.add_argument("model", type=Path, metavar="MODEL", help="checkpoint file, or its folder")
    own.add_argument("--to", type=Path, metavar="FOLDER", required=True, help="new folder")
    add_json(own)
    own = add(oneshot, ONESHOT)
    own.add_argument("model", metavar="MODEL", help="a language model's folder, or hub:ORG/NAME")
    own.add_argument("dataset", metavar="TEXTS", help="reviews-text, wikitext2, … or local:FOLDER")
    own.add_argument("--methods", nargs="+", metavar="METHOD", help="default: the usual ones")
    own.add_argument("--sparsities", nargs="+", type=float, metavar="S", help="default 0 … 0.9")
    own.add_argument("--patterns", nargs="+", metavar="N:M", help="default 1:2 2:4 4:8")
    own.add_argument("--column", metavar="COLUMN", help="text column, if it is not found")
    own.add_argument("--length", type=int, metavar="TOKENS", help="block length (default 2048)")
    own.add_argument(
        "--blocks", type=int, default=128, help="for calibration, at most (default 128)"
    )
    own.add_argument("--stream", action="store_true", help="read each block when it is needed")
    own.add_argument("--to", type=Path, metavar="FOLDER", help="save the pruned model there")
    own.set_defaults(keys={"data.text": "--column"})
    add_json(own)
    own = add(evaluate, EVALUATE)
    own.add_argument("ticket", type=Path, metavar="TICKET", help="exported folder")
    own.add_argument("dataset", metavar="DATASET", help="name as in params.yaml, or local:FOLDER")
    own.add_argument(
        "--columns",
        nargs="+",
        metavar="COLUMN",
        help="one or two text columns, or the image column",
    )
    own.add_argument(
        "--label", metavar="COLUMN", help="label column of local:FOLDER (default label)"
    )
    own.add_argument(
        "--path", type=Path, metavar="FOLDER", help="local copy of DATASET, instead of the hub"
    )
    own.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="auto: bf16 if the hardware multiplies it",
    )
    columns = dict.fromkeys(("data.text", "data.image"), "--columns")
    own.set_defaults(keys={**columns, "data.label": "--label"})
    add_json(own)
    return top


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option --json."""
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def in_arguments(error: str, options: argparse.Namespace) -> str:
    """An error of the pipeline's checks, which speak of params.yaml: here keys are arguments."""
    folder = "--path" if getattr(options, "path", None) else "dataset"
    keys = {**getattr(options, "keys", {}), "data.path": folder}
    for key, argument in keys.items():
        error = error.replace(f"{key}:", f"{argument}:")
    return error.removeprefix("params.yaml: ")


def main(arguments: list[str] | None = None) -> int:
    """Run a command, and return its exit status. A user's mistake is one line on stderr."""
    options = parser().parse_args(arguments)
    try:
        for name, value in vars(options).items():
            if isinstance(value, Path):
                setattr(options, name, path_of(value))
        options.command(options)
    except (UserError, OSError) as error:
        print(f"error: {in_arguments(str(error), options)}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        install = f"pip install 'instant-soup[{OPTIONAL[package]}]'"
        print(f"error: the package {package} is not installed: {install}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
