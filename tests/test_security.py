"""人からもらったフォルダやデータに仕込まれたものが、実行されず、表や説明書でも働かないことを確かめます。"""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dpo_helpers as dpo


class Payload:
    """読むと、marker のファイルを作ります。"""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def plant(path, marker, as_torch):
    if as_torch:
        torch.save(Payload(marker), path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker)))


def test_the_payload_is_real(tmp_path):
    plant(tmp_path / "a.pkl", tmp_path / "marker", False)
    pickle.loads((tmp_path / "a.pkl").read_bytes())
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("as_torch", [True, False])
@pytest.mark.parametrize("place", ["adapter", "warmup", "base"])
def test_nothing_planted_in_a_run_folder_runs(place, as_torch, small_run, small_base, tmp_path):
    folder, base, marker = tmp_path / "run", tmp_path / "base", tmp_path / "marker"
    shutil.copytree(small_run.folder, folder)
    shutil.copytree(small_base, base)
    settings = json.loads((folder / "config.json").read_text("utf-8")) | {"base_model": str(base)}
    (folder / "config.json").write_text(json.dumps(settings))
    dpo.load_run(folder)
    target = base if place == "base" else folder / place
    weights, binary = ("model", "pytorch_model") if place == "base" else ("adapter_model", "adapter_model")
    (target / f"{weights}.safetensors").unlink()
    plant(target / f"{binary}.bin", marker, as_torch)
    with pytest.raises(dpo.HelperError):
        dpo.load_run(folder)
    assert not marker.exists()


@pytest.fixture(scope="module")
def stopped(small_config, tmp_path_factory):
    """DPO の途中で止めた実行の設定です。"""
    config = small_config(output_dir=tmp_path_factory.mktemp("stopped") / "out", num_train_epochs=5.0)

    def watch(status, history):
        if status["phase"] == "DPO" and status["step"] == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, watch=watch)
    return config


@pytest.mark.parametrize("as_torch", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_nothing_planted_in_a_checkpoint_runs(name, as_torch, stopped, tmp_path):
    shutil.copytree(stopped.output_dir, tmp_path / "out")
    plant(dpo.last_checkpoint(tmp_path / "out" / "checkpoints") / name, tmp_path / "marker", as_torch)
    dpo.train(replace(stopped, output_dir=str(tmp_path / "out"))).lock.release()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["pairs.pkl", "pairs.csv", "pairs.jsonl", "pairs.json", "pairs.parquet", "pairs"])
def test_nothing_planted_in_a_data_file_runs(name, tmp_path):
    plant(tmp_path / name, tmp_path / "marker", False)
    with pytest.raises(dpo.HelperError):
        dpo.load_pairs(str(tmp_path / name))
    assert not (tmp_path / "marker").exists()


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
    pairs = dpo.build_pairs(20)
    folder = Path(dpo.run_folder(dpo.Config(base_model=name), pairs, tmp_path))
    assert folder.parent == tmp_path and folder.resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "", None, 1, "a" * 300])
def test_a_study_cannot_be_written_elsewhere(name, tmp_path):
    with pytest.raises(dpo.HelperError, match="実験の名前"):
        dpo.sweep(dpo.Config(base_model="offline-tiny"), {"beta": [0.1]}, folder=tmp_path / "s", name=name)
    assert not (tmp_path / "s").exists()


HOSTILE = ["=HYPERLINK(\"http://x\")", "<img src=x onerror=alert(1)>", "|a|b|", "`rm -rf`", "![x](http://x)", "@SUM(1)"]


@pytest.fixture(scope="module")
def hostile_run(small_config, tmp_path_factory):
    rows = [{"prompt": f"{text}{i}", "chosen": f"{text} よい{i}。", "rejected": f"{text}だめ", "concept": text,
             "flaw": text} for i in range(5) for text in HOSTILE]  # fmt: skip
    run = dpo.train(small_config(output_dir=tmp_path_factory.mktemp("hostile") / "run"), rows)
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    return run


def test_formulas_and_html_in_pairs_are_inert(hostile_run):
    pairs = dpo.example_pairs(hostile_run.train_pairs)
    tables = [pairs, dpo.worst_pairs(hostile_run), dpo.example_answers(hostile_run)]
    pages = [dpo.show_table(table, "注意").to_html() for table in tables]
    assert not any("<img" in page for page in pages) and any("&lt;img" in page for page in pages)
    findings = dpo.audit_pairs(hostile_run.train_pairs, hostile_run.tokenizer)
    assert "<img" not in dpo.show_table(dpo.audit_table(findings)).to_html()
    card = (hostile_run.folder / "README.md").read_text("utf-8")
    assert not any(text in card for text in HOSTILE)
    assert not list(hostile_run.folder.rglob("*.csv"))  # 対の文を、表計算ソフトが開く形では書かない


def test_a_model_card_quotes_names(hostile_run, tmp_path):
    card = dpo.model_card(hostile_run, 'x"\nevil: yes', "adapter`")
    head = card.split("---")[1]
    assert "\nevil" not in head and 'base_model: "x\\"\\nevil: yes"' in head
    compile(card.split("```python")[1].split("```")[0], "card", "exec")


SECRET = "hf_" + "Secret" * 6


def test_tokens_are_in_no_file_and_no_output(small_config, tmp_path, monkeypatch, capfd):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    config = small_config(output_dir=tmp_path / "out", num_train_epochs=5.0)
    run = dpo.train(config, watch=dpo.progress_bar(), report=print)
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    with pytest.raises(dpo.HelperError) as error:
        dpo.push_run(run, "nobody/nothing")
    assert SECRET not in str(error.value) + str(error.value.__cause__)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err


def test_the_revision_of_a_hub_model_is_recorded(small_base, small_config, tmp_path, monkeypatch):
    """Hub から取ったときと同じ形のキャッシュ（snapshots/<版>）から読みます。"""
    revision = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--someone--model"
    shutil.copytree(small_base, model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    run = dpo.train(small_config(base_model="someone/model"))
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    assert json.loads((run.folder / "environment.json").read_text("utf-8"))["base_model_revision"] == revision


def test_adapters_are_saved_as_safetensors_only(small_run):
    kinds = {path.suffix for name in ("adapter", "warmup") for path in (small_run.folder / name).iterdir()}
    assert ".safetensors" in kinds and not kinds & {".bin", ".pt", ".pkl", ".pth"}
