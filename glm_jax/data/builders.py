"""TFDS builders that write documents as ArrayRecord, without TensorFlow.

A prepared data set lies under ``<cache>/<builder>/<config>/<version>``. TFDS writes into a
folder with another name and renames it when it is whole, so what is found there is complete.
The config's name is a fingerprint of the source: when files or options change, another folder
is prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from glm_jax.data.sources import files, python_docs
from glm_jax.errors import UserError

_log = logging.getLogger(__name__)

SPLITS = ("train", "heldout")


def is_heldout(text: str, percent: float) -> bool:
    """Whether a document is held out: its own hash decides, so copies fall on the same side."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64


class DocumentBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Documents with one field, ``text``, in the splits ``train`` and ``heldout``."""

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Documents."

    def __init__(self, **kwargs):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def documents(self, skipped: list[str]) -> Iterator[tuple[str, str]]:
        """All (key, text) pairs of the source, always in the same order.

        Args:
          skipped: gets a line for every bad record that was left out.
        """
        raise NotImplementedError

    @property
    def heldout_percent(self) -> float:
        return self.builder_config.heldout_percent

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        found = {}
        for split in SPLITS:
            examples = self._generate_examples(split)
            first = next(examples, None)  # TFDS cannot write an empty split
            if first is not None:
                found[split] = itertools.chain([first], examples)
        if not found:
            raise UserError(f"{self.builder_config.description} holds no document")
        return found

    def _generate_examples(self, split: str):
        skipped: list[str] = []  # both splits read the whole source, so each sees all of them
        for key, text in self.documents(skipped):
            if is_heldout(text, self.heldout_percent) == (split == "heldout"):
                yield key, {"text": text}
        self.info.metadata.update(bad_records=len(skipped), first_bad_records=skipped[:5])


@dataclasses.dataclass(kw_only=True)
class DocumentConfig(tfds.core.BuilderConfig):
    """What a builder is to read, and how much of it is held out."""

    name: str = ""  # a fingerprint of the source
    heldout_percent: float = 3.0


@dataclasses.dataclass(kw_only=True)
class FilesConfig(DocumentConfig):
    """Local files (see ``sources.files``)."""

    paths: tuple[str, ...] = ()
    text_field: str = "text"
    on_bad: str = "raise"


class PythonDocs(DocumentBuilder, skip_registration=True):
    """The documentation of the Python that runs it: docstrings, topics and comments."""

    name = "python_docs"
    DESCRIPTION = "Reference topics, docstrings and comments of the Python standard library."

    def documents(self, skipped: list[str]) -> Iterator[tuple[str, str]]:
        del skipped  # a file that is not Python is no record
        return python_docs.documents(python_docs.stdlib_dir())


class LocalFiles(DocumentBuilder, skip_registration=True):
    """Texts of local files."""

    name = "local_files"
    DESCRIPTION = "Texts of local .txt, .jsonl and .parquet files."

    def documents(self, skipped: list[str]) -> Iterator[tuple[str, str]]:
        config = self.builder_config
        paths = [Path(p) for p in config.paths]
        return files.documents(paths, config.text_field, config.on_bad, skipped)


def python_docs_builder(cache_dir: str | Path, heldout_percent: float) -> PythonDocs:
    """The builder of the embedded default corpus."""
    name = f"{python_docs.edition(python_docs.stdlib_dir())}-heldout{heldout_percent:g}"
    config = DocumentConfig(name=name, heldout_percent=heldout_percent)
    config.description = "the standard library"
    with quiet():
        return PythonDocs(config=config, data_dir=str(cache_dir))


def files_builder(
    pattern: str, text_field: str, on_bad: str, cache_dir: str | Path, heldout_percent: float
) -> LocalFiles:
    """The builder of the files that a glob matches now.

    Raises:
      UserError: nothing matches, or a file's format is not known.
    """
    paths = files.find(pattern)
    config = FilesConfig(
        name=files.fingerprint(paths, text_field, on_bad, heldout_percent),
        heldout_percent=heldout_percent,
        paths=tuple(str(p) for p in paths),
        text_field=text_field,
        on_bad=on_bad,
    )
    config.description = f"{pattern!r} ({len(paths)} files)"
    with quiet():
        return LocalFiles(config=config, data_dir=str(cache_dir))


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Writes a data set unless it lies there whole; silent, and safe beside another preparation.

    Raises:
      UserError: the source is bad (one line that names file and record).
    """
    if Path(builder.data_dir).exists():
        return builder
    try:
        with quiet():
            builder.download_and_prepare()
    except Exception as error:
        if isinstance(error, OSError) and Path(builder.data_dir).exists():
            builder.info.read_from_directory(builder.data_dir)  # another process was faster
        else:
            raise (_user_error(error) or error) from None
    bad = builder.info.metadata.get("bad_records") if builder.info.metadata else 0
    if bad:
        first = "; ".join(builder.info.metadata["first_bad_records"])
        _log.warning("skipped %d bad records, the first of them: %s", bad, first)
    return builder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """TFDS without its prints, progress bars and hints."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _user_error(error: BaseException | None) -> UserError | None:
    """The error of ours that TFDS has wrapped into its own, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error
