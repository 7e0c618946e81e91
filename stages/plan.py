"""params.yaml → one small, checked and resolved settings file for each stage that reads one."""

from instant_soup.files import new_folder, read_yaml, run_stage, write_yaml
from instant_soup.methods.rounds import mask_finding_share
from instant_soup.pipeline.plan import check, check_rounds, plan


def main() -> None:
    params = read_yaml("params.yaml")
    files = plan(params)
    with new_folder("models/plan") as folder:
        for name, contents in files.items():
            write_yaml(folder / f"{name}.yaml", contents)

    settings = check(params)
    sparsities = check_rounds(settings)
    rounds = ", ".join(f"{100 * s:g}" for s in sparsities)
    epochs, calibration = settings["training"]["epochs"], settings["isp"]["calibration"]
    share = mask_finding_share(len(sparsities), calibration, epochs)
    print(
        f"plan: {settings['model']} on {settings['dataset']}, {epochs:g} epoch(s); "
        f"ISP prunes to {rounds} % over the first {share:.0%} of them"
    )


if __name__ == "__main__":
    run_stage(main)
