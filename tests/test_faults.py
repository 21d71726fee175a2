"""壊れたチェックポイント、消えたり書けなかったりするフォルダの下でも、済んだ仕事が失われないことを確かめます。"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import adapter_difference, finish
from transformers import TrainerCallback

import dpo_helpers as dpo


@pytest.mark.parametrize("part", ["DONE", "trainer_state.json", "optimizer.pt", "adapter_model.safetensors"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_torn_checkpoint_falls_back_to_the_one_before(part, how, stopped, tmp_path):
    folder = Path(shutil.copytree(stopped.folder / "checkpoints" / "dpo", tmp_path / "dpo"))
    assert dpo.last_checkpoint(folder).endswith("checkpoint-100")
    path = folder / "checkpoint-100" / part
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    assert dpo.last_checkpoint(folder).endswith("checkpoint-50")


@pytest.mark.colab
def test_a_run_with_a_torn_checkpoint_ends_with_the_same_adapter(stopped, tmp_path):
    runs = []
    for name in ("whole", "torn"):
        folder = Path(shutil.copytree(stopped.folder, tmp_path / name))
        if name == "torn":
            (folder / "checkpoints" / "dpo" / "checkpoint-100" / "optimizer.pt").write_bytes(b"")
        runs.append(finish(replace(stopped, output_dir=str(folder))))
    assert adapter_difference(*(run.config.folder for run in runs)) < 1e-6
    assert runs[0].history[-1]["loss"] == runs[1].history[-1]["loss"]


def test_a_folder_removed_during_training_is_said(small_config):
    config = small_config(num_pairs=240, sft_epochs=0.0)

    class Remove(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:
                shutil.rmtree(config.folder)

    with pytest.raises(dpo.HelperError, match="フォルダ"):
        finish(config, callbacks=[Remove()])


@pytest.mark.parametrize("place", ["/proc/out", "{file}/out", "/dev/null"])
def test_a_place_that_cannot_be_written_is_said(place, small_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(dpo.HelperError, match="フォルダ"):
        dpo.train(small_config(output_dir=place.format(file=tmp_path / "file")))
