"""What is damaged, how it is read, and whether a difference may go unnoticed.

A target writes intact files once. A case is a copy of them with one damage. Reading it must give
what the intact files give, or end in one of our errors that names a file. Where files carry no
checksums, a wrong bit in a number or a pixel is a number or a pixel: there another result is
allowed, and only that reading ends well is looked at.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuzz.mutations import HOSTILE, damage_bytes, damage_json
from made_data import make_data, profile
from made_profiles import HEADLINE, planted
from PIL import Image
from tiny import random_image, tiny_llava_next
from upstream import random_parts, write_tower, write_upstream

import mm_lens
from mm_lens._storage.sums import write_sums
from mm_lens.checkpoints import pickles
from mm_lens.data import datasets
from mm_lens.data.pictures import read_picture
from mm_lens.profiling.result import Profile


class Target:
    """Files of one kind; `share` of all cases, less where one takes longer."""

    name: str
    share: int

    def write(self, directory: Path) -> None:
        """The intact files."""
        raise NotImplementedError

    def damage(self, directory: Path, rng: random.Random) -> tuple[str, bool]:
        """Damage a copy; returns what was done, and whether another result would be a fault."""
        raise NotImplementedError

    def read(self, directory: Path) -> Any:
        """What the files say, to be compared; of several, by file. May write to `out` beside."""
        raise NotImplementedError


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def pick(directory: Path, rng: random.Random, pattern: str = "*") -> Path:
    files = [path for path in directory.rglob(pattern) if path.is_file()]
    return rng.choice(sorted(path for path in files if path.stat().st_size))


def damage_file(path: Path, rng: random.Random) -> str:
    kind, content = damage_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"{kind} {path.name}"


def edit_file(path: Path, rng: random.Random) -> str:
    path.write_text(json.dumps(damage_json(json.loads(path.read_text()), rng)))
    return f"edit {path.name}"


class Images(Target):
    name, share = "images", 50

    def write(self, directory):
        noise = random_image(23, 31)
        for ending in ("png", "jpg", "gif", "bmp", "tiff", "webp"):
            noise.save(directory / f"noise.{ending}")
        grey = np.asarray(noise.convert("L"))
        Image.fromarray(grey.astype(np.uint16) * 257).save(directory / "deep.png")
        noise.convert("P").save(directory / "palette.png", transparency=3)
        noise.save(directory / "packed.tif", compression="tiff_lzw")

    def damage(self, directory, rng):
        path = pick(directory, rng)
        for other in directory.iterdir():
            if other != path:
                other.unlink()
        told = damage_file(path, rng)
        # Only PNG has checksums; that the end is missing is seen of every format.
        return told, path.suffix == ".png" or told.startswith("cut")

    def read(self, directory):
        return {
            path.name: digest(read_picture(path).tobytes()) for path in sorted(directory.iterdir())
        }


class Tables(Target):
    name, share = "tables", 50

    def write(self, directory):
        picture = io.BytesIO()
        random_image(5, 7).save(picture, "png")
        (directory / "a.png").write_bytes(picture.getvalue())
        rows = [
            {"id": f"{i}", "image": "a.png" if i % 3 else None, "text": f"Now, what is {i}?"}
            | {"answer": "red" if i % 2 else None}
            for i in range(6)
        ]
        pd.DataFrame(rows).to_csv(directory / "set.csv", index=False)
        lines = [json.dumps(row) for row in rows]
        (directory / "set.jsonl").write_text("\n".join(lines) + "\n")
        for row in rows:
            row["image"] = row["image"] and {"bytes": picture.getvalue(), "path": "a.png"}
        pd.DataFrame(rows).to_parquet(directory / "set.parquet")

    def damage(self, directory, rng):
        path = pick(directory, rng, "set.*")
        for other in directory.glob("set.*"):
            if other != path:
                other.unlink()
        if path.suffix == ".jsonl" and rng.random() < 0.6:
            return self._spoil_cell(path, rng)
        if path.suffix == ".csv" and rng.random() < 0.4:
            quoted = path.read_text().split("\n")
            row = rng.randrange(1, 7)
            quoted[row] = quoted[row].replace('"', "")
            path.write_text("\n".join(quoted))
            return "a comma without quotes", True
        return damage_file(path, rng), False

    def _spoil_cell(self, path, rng):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        row, column = rng.choice(rows), rng.choice(["text", "image", "answer", "id"])
        row[column] = rng.choice(HOSTILE)
        path.write_text("\n".join(map(json.dumps, rows)))
        value = row[column]
        # A number may be an answer, another text a question, and nothing no image.
        other = isinstance(value, (list, dict)) or (column == "text" and value in ("", None))
        return f"{column} = {value!r:.40}", other

    def read(self, directory):
        return {
            path.name: [
                (s.id, s.text, s.answer, s.image and digest(s.image.tobytes()))
                for s in datasets.load(path)
            ]
            for path in directory.glob("set.*")
        }


class Models(Target):
    """A directory that transformers loads, of which one small file is damaged."""

    files: tuple[str, ...]

    def write(self, directory):
        model, processor = tiny_llava_next()
        model.save_pretrained(directory)
        processor.save_pretrained(directory)

    def damage(self, directory, rng):
        path = directory / rng.choice([name for name in self.files if (directory / name).exists()])
        if path.suffix == ".json" and rng.random() < 0.75:
            return edit_file(path, rng), False
        if path.suffix == ".jinja" and rng.random() < 0.5:
            path.write_text(rng.choice(TEMPLATES) + path.read_text())
            return "template", False
        return damage_file(path, rng), False

    def read(self, directory):
        model = mm_lens.load(str(directory))
        inputs = model.prepare("What is this?", random_image(20, 30))
        with torch.no_grad():
            return digest(model(inputs).tolist())


TEMPLATES = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set s = namespace(x='xxxxxxxx') %}"
    "{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
    "{{ 'a' * 99999999999 }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 'a'.center(99999999999) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{% include 'x' %}",
    "{% if",
)


class Configs(Models):
    name, share = "configs", 4
    files = ("config.json", "generation_config.json")


class Processors(Models):
    name, share = "processor configs", 4
    files = ("processor_config.json", "chat_template.jinja")


class Tokenizers(Models):
    name, share = "tokenizers", 4
    files = ("tokenizer.json", "tokenizer_config.json")


class Pickles(Target):
    name, share = "pickles", 50

    @cached_property
    def parts(self):
        return random_parts()

    def write(self, directory):
        write_upstream(directory / "new", self.parts)
        write_upstream(directory / "old", self.parts, legacy=True)
        for path in [*directory.rglob("*.pt")]:
            path.rename(directory / f"{path.parents[1].name}-{path.name}")
        for left in ("new", "old"):
            shutil.rmtree(directory / left)

    def damage(self, directory, rng):
        path = pick(directory, rng)
        for other in directory.iterdir():
            if other != path:
                other.unlink()
        told = damage_file(path, rng)
        return told, path.read_bytes()[:2] == b"PK"  # torch before 1.6 wrote no checksums

    def read(self, directory):
        allowed = r"models\.\w+|torch\.nn\.[\w.]+"
        return {
            path.name: digest(_plain(pickles.read(path, allowed))) for path in directory.iterdir()
        }


def _plain(found: Any) -> Any:
    """What a file of torch holds, as texts and numbers."""
    if isinstance(found, torch.Tensor):
        return tuple(found.shape), found.tolist()
    if isinstance(found, pickles.StandIn):
        return pickles.name_of(type(found)), _plain(found.state)
    if isinstance(found, dict):
        return [(repr(key), _plain(value)) for key, value in found.items()]
    return repr(found)


SMALL = {"n_layers": 3, "metrics": HEADLINE[::3], "streams": ("residual",)}


class Profiles(Target):
    name, share = "profiles", 15

    def write(self, directory):
        planted(seed=1, **SMALL).save(directory / "run")

    def damage(self, directory, rng):
        run = directory / "run"
        if rng.random() < 0.6:
            return damage_file(pick(run, rng), rng), True
        if rng.random() < 0.5:
            told = edit_file(run / "provenance.json", rng)
        else:
            told = self._edit_table(
                run / rng.choice(["profile.parquet", "replicates.parquet"]), rng
            )
        write_sums(run, ["profile.parquet", "provenance.json", "replicates.parquet"])
        return told, False

    def _edit_table(self, path, rng):
        table = pd.read_parquet(path)
        column, row = rng.choice([*table.columns]), rng.randrange(len(table))
        change = rng.choice(["drop", "rename", "value", "value", "type", "double", "empty", "nan"])
        if change == "drop":
            table = table.drop(columns=column)
        elif change == "rename":
            table = table.rename(columns={column: f"{column}_"})
        elif change == "value":
            values = table[column].tolist()
            values[row] = rng.choice([-1, 10**9, float("inf"), 0.5])
            if isinstance(table[column].iloc[0], str):
                values[row] = rng.choice(["", "other", "\x1b[2J", "a\u2028", "</script>"])
            table[column] = values
        elif change == "type":
            table[column] = [str(value) for value in table[column]]
        elif change == "double":
            table = pd.concat([table, table.iloc[[row]]])
        elif change == "empty":
            table = table.iloc[:0]
        else:
            table[column] = float("nan")
        table.to_parquet(path, index=False)
        return f"{change} {column} of {path.name}"

    def read(self, directory):
        found = Profile.load(directory / "run")
        other = planted("demo/b", seed=2, **SMALL)
        compared = mm_lens.compare(found, other, paired=False)
        compared.findings, compared.differences, repr(compared), compared.markdown()
        return digest(found.table.to_csv(), found.provenance, found.replicates.to_csv())


class RunDirectories(Target):
    name, share = "run directories", 3

    @cached_property
    def model(self):
        model, processor = tiny_llava_next()
        return mm_lens.load(hf_model=model, processor=processor, check=False)

    @cached_property
    def data(self):
        return make_data(6)

    def write(self, directory):
        profile(self.model, self.data, directory / "run")

    def damage(self, directory, rng):
        return damage_file(pick(directory, rng), rng), True

    def read(self, directory):
        found = profile(self.model, self.data, directory / "run")
        return digest(found.table.to_csv(), found.replicates.to_csv())


class Conversions(Target):
    name, share = "conversions", 15

    @cached_property
    def parts(self):
        return random_parts()

    def write(self, directory):
        write_upstream(directory / "source", self.parts)
        write_tower(directory / "tower", self.parts, binary=False)

    def damage(self, directory, rng):
        path = pick(directory, rng)
        if path.suffix == ".json" and rng.random() < 0.75:
            return edit_file(path, rng), False
        told = damage_file(path, rng)
        return told, path.suffix == ".pt"

    def read(self, directory):
        out = directory.parent / "out"
        mm_lens.convert(
            "omnifusion",
            directory / "source",
            out,
            vision_tower=str(directory / "tower"),
            progress=False,
        )
        found = {
            path.name: digest(path.read_bytes())
            for path in sorted(out.iterdir())
            if path.name != "conversion.json"
        }
        shutil.rmtree(out)
        return found


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Images(),
        Tables(),
        Configs(),
        Processors(),
        Tokenizers(),
        Pickles(),
        Profiles(),
        RunDirectories(),
        Conversions(),
    )
}


def read_quietly(target: Target, directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return target.read(directory)
