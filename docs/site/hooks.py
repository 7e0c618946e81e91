"""What the site needs beside mkdocs.yml: pages from outside docs/, and links as GitHub reads them.

The Markdown files stay as GitHub shows them. A link to a page or picture of the repository becomes
a link of the site; a link to any other file becomes its name, and mkdocs warns where none is there.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parent.parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reports/benchmarks.md"]
PAGES += [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("reports/tables/*.md"))]
PAGES += [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("reports/studies/*.md"))]
STATIC = ["reports/index.html"]
STATIC += [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("reports/**/*.png"))]


def on_config(config):
    """Name the headings' anchors as GitHub does."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config) -> Files:
    """Add the files from outside docs/, under their paths in the repository."""
    for name in PAGES + STATIC:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = Path(page.file.src_uri)
    inside = Path("docs") / here if (ROOT / "docs" / here).is_file() else here

    def link(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match.group()
        found = (ROOT / inside.parent / path).resolve()
        name = str(found.relative_to(ROOT))
        site = name.removeprefix("docs/")
        if files.get_file_from_path(site) is None:
            return match.group() if picture or not found.exists() else text
        up = "../" * (len(here.parts) - 1)
        return f"{picture}[{text}]({up}{site}{'#' + anchor if anchor else ''})"

    blocks = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    prose = [re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, part) for part in blocks[::2]]
    blocks[::2] = [_with_lists(part) for part in prose]
    return "".join(blocks)


def _with_lists(text: str) -> str:
    """Put the blank line before a list that Python's Markdown wants and GitHub does not."""
    return re.sub(r"(?m)^((?![*\-|\s]|\d+\.).+)\n(?=(?:[*-]|1\.) )", r"\1\n\n", text)
