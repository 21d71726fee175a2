"""人からもらったフォルダやデータに仕込まれたものが、実行されず、表や説明書でも働かないことを確かめます。"""

import contextlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import finish

import dpo_helpers as dpo


class Payload:
    """読むと、marker のファイルを作ります。"""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def plant(path, marker, save):
    with open(path, "wb") as file:
        save(Payload(marker), file)


@pytest.mark.parametrize(("place", "save"), [("adapter", torch.save), ("sft", pickle.dump), ("base", torch.save)])
def test_nothing_planted_in_a_run_folder_runs(place, save, small_run, small_base, tmp_path):
    folder, base, marker = tmp_path / "run", tmp_path / "base", tmp_path / "marker"
    shutil.copytree(small_run.config.folder, folder)
    shutil.copytree(small_base, base)
    settings = json.loads((folder / "config.json").read_text("utf-8")) | {"base_model": str(base)}
    (folder / "config.json").write_text(json.dumps(settings))
    dpo.load_run(folder)
    target = base if place == "base" else folder / place
    weights, binary = ("model", "pytorch_model") if place == "base" else ("adapter_model", "adapter_model")
    (target / f"{weights}.safetensors").unlink()
    plant(target / f"{binary}.bin", marker, save)
    with pytest.raises(dpo.HelperError):
        dpo.load_run(folder)
    assert not marker.exists()


@pytest.mark.parametrize(("name", "save"), [
    ("optimizer.pt", torch.save), ("scheduler.pt", pickle.dump), ("rng_state.pth", pickle.dump),
    ("training_args.bin", torch.save),
])  # fmt: skip
def test_nothing_planted_in_a_checkpoint_runs(name, save, stopped, tmp_path):
    """書き終えた印まで付け直してあっても、実行しません。"""
    shutil.copytree(stopped.output_dir, tmp_path / "out")
    checkpoint = Path(dpo.last_checkpoint(tmp_path / "out" / "checkpoints" / "dpo"))
    plant(checkpoint / name, tmp_path / "marker", save)
    dpo.mark_done(checkpoint)
    with contextlib.suppress(Exception):  # 読めないチェックポイントの誤りは、問わない
        dpo.train(replace(stopped, output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["pairs.pkl", "pairs.csv", "pairs.jsonl", "pairs.json", "pairs.parquet", "pairs"])
def test_nothing_planted_in_a_data_file_runs(name, tmp_path):
    plant(tmp_path / name, tmp_path / "marker", pickle.dump)
    with pytest.raises(dpo.HelperError):
        dpo.load_pairs(str(tmp_path / name))
    assert not (tmp_path / "marker").exists()
    pickle.loads((tmp_path / name).read_bytes())  # 仕込んだものが、本物であること
    assert (tmp_path / "marker").exists()


def test_programs_that_come_with_a_model_are_not_run(small_base, tmp_path):
    shutil.copytree(small_base, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    settings["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {"model_type": "evil"}))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(dpo.HelperError, match="読み込めませんでした"):
        dpo.load_model(dpo.Config(base_model=str(tmp_path / "model")))
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["../../evil", "..", "/etc/passwd", "a/b", "con\\..\\x", "~", "*"])
def test_names_stay_inside_the_chosen_folder(name, tmp_path):
    folder = Path(dpo.run_folder(dpo.Config(base_model=name), dpo.build_pairs(20), tmp_path))
    assert folder.parent == tmp_path and folder.resolve().parent == tmp_path.resolve()


HOSTILE = ["=HYPERLINK(\"http://x\")", "<img src=x onerror=alert(1)>", "|a|b|", "`rm -rf`", "![x](http://x)", "@SUM(1)"]


def test_formulas_and_html_in_pairs_are_inert(small_config):
    rows = [{"prompt": f"{text}{i}", "chosen": f"{text} よい{i}。", "rejected": f"{text}だめ", "concept": text,
             "flaw": text} for i in range(5) for text in HOSTILE]  # fmt: skip
    run = finish(small_config(max_length=72), rows)
    findings = dpo.audit_pairs(run.train_pairs, run.tokenizer)
    findings = pd.DataFrame({"検査": map(dpo.finding_text, dpo.audit_pairs(run.train_pairs, run.tokenizer))})
    pages = [dpo.show_table(table).to_html() for table in (run.scores, run.answers, findings)]
    assert not any("<img" in page for page in pages) and any("&lt;img" in page for page in pages)
    card = (run.config.folder / "adapter" / "README.md").read_text("utf-8")
    assert not any(text in card for text in HOSTILE)
    assert not list(run.config.folder.rglob("*.csv"))  # ペアの文を、表計算ソフトが開く形では書かない


def test_a_model_card_quotes_names(small_run, monkeypatch):
    monkeypatch.setattr(small_run.model.config, "_name_or_path", 'x"\nevil: yes')
    card = dpo.model_card(small_run)
    head = card.split("---")[1]
    assert "\nevil" not in head and 'base_model: "x\\"\\nevil: yes"' in head
    compile(card.split("```python")[1].split("```")[0], "card", "exec")
