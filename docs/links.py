"""For mkdocs: what lies outside of docs/ and is linked to is copied into the site.

In the repository a page links to ``../examples/own_model.py``; in the site that is
``source/examples/own_model.py.txt``. Text ends in ``.txt`` there, so that a browser shows it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#]+)")
TEXT = (".md", ".py", ".yaml", ".toml")


def on_files(files: Any, config: Any) -> None:
    """Add what the pages link to."""
    wanted = {
        outside
        for page in files.documentation_pages()
        for link in LINK.findall(page.content_string)
        if (outside := _outside(page.src_uri, link)) is not None
    }
    root = Path(config.config_file_path).parent
    for outside in sorted(wanted):
        path = str(root / outside)
        files.append(File.generated(config, _in_site(outside), abs_src_path=path))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn the links of a page to where the files are in the site."""
    here = page.file.src_uri

    def turned(found: re.Match[str]) -> str:
        outside = _outside(here, found[0])
        if outside is None:
            return found[0]
        return posixpath.relpath(_in_site(outside), posixpath.dirname(here) or ".")

    return LINK.sub(turned, markdown)


def _outside(page: str, link: str) -> str | None:
    """The linked file, relative to the repository's root; None for one inside of docs/."""
    found = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if found.startswith("docs/") else found


def _in_site(outside: str) -> str:
    return f"source/{outside}" + (".txt" if outside.endswith(TEXT) else "")
