from pathlib import Path

import pytest

from producer.compression.recipe_file import read_recipe


@pytest.mark.parametrize(
    "data", ["s3://bucket/texts.jsonl", "zip://texts.jsonl::/data/all.zip", "job:0198c0de-0000-7000-8000-000000000000"]
)
def test_a_url_or_a_job_is_left_alone(data: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f'evaluate: "{data}"\nsteps:\n  - {{step: distill, data: "{data}"}}\n')
    found = read_recipe(file)
    assert found.options == {"evaluate": data}
    assert found.steps == [{"step": "distill", "data": data}]


@pytest.mark.parametrize("data", ["texts.jsonl", "below/*.parquet"])
def test_a_path_is_relative_to_the_file(data: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f'evaluate: "{data}"\nsteps:\n  - {{step: distill, data: "{data}"}}\n')
    found = read_recipe(file)
    assert found.options["evaluate"] == found.steps[0]["data"] == tmp_path / data
