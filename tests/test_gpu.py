"""計算の精度と、GPU での損失を確かめます。印 gpu のものは、GPU がなければ省きます（`pytest -m gpu` で、それだけ）。"""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, finish
from transformers import GPT2Model

import dpo_helpers as dpo

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU がありません")
LOSSES = """
import json, sys
import dpo_helpers as dpo
run = dpo.train(dpo.Config(**json.loads(sys.argv[1])), report=str)
print(json.dumps([row["loss/preference"] for row in run.history]))
"""


@pytest.mark.gpu
def test_every_forward_of_every_phase_is_float32_on_the_device(small_config, monkeypatch):
    """SFT、参照モデル、DPO、評価、生成のどれも、autocast を使わず、float32 の重みで計算します。"""
    seen, load = [], dpo.load_model

    def see(module, *_):
        weight = next(module.parameters())
        seen.append((torch.is_autocast_enabled(weight.device.type), weight.dtype, weight.device.type))

    def watched(config, show=None):
        model, tokenizer = load(config, show)
        model.get_decoder().register_forward_hook(see)
        return model, tokenizer

    monkeypatch.setattr(dpo, "load_model", watched)
    finish(small_config(num_pairs=24))
    assert len(seen) > 50 and set(seen) == {(False, torch.float32, "cuda" if torch.cuda.is_available() else "cpu")}


@pytest.mark.gpu
def test_a_real_memory_error_of_the_device_makes_the_batches_smaller(still_base, small_config, monkeypatch):
    """本当に足りないメモリを求めて起こした誤りのあとも、マイクロバッチを減らして、足りるときと同じ損失で終わります。"""
    device, forward, said = "cuda" if torch.cuda.is_available() else "cpu", GPT2Model.forward, []
    small = {"base_model": str(still_base), "num_pairs": 24, "sft_epochs": 0.5}
    whole = dpo.train(small_config(**small), report=str)

    def hungry(self, input_ids=None, *args, **options):
        if torch.is_grad_enabled() and len(input_ids) > 2:  # 1 ペアは、chosen と rejected の 2 行
            torch.empty(2**50, device=device)
        return forward(self, input_ids, *args, **options)

    monkeypatch.setattr(GPT2Model, "forward", hungry)
    run = dpo.train(small_config(**small), report=said.append)
    assert any("マイクロバッチを 1 に減らし、4 回分" in text for text in said), said
    losses = [[row["loss/preference"] for row in each.history] for each in (whole, run)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3) and len(losses[0]) == 5


@needs_gpu
@pytest.mark.gpu
def test_the_losses_of_the_gpu_are_those_of_the_cpu(still_base, small_config, tmp_path):
    losses = []
    for side, environment in {"gpu": {"NVIDIA_TF32_OVERRIDE": "0"}, "cpu": {"CUDA_VISIBLE_DEVICES": ""}}.items():
        config = small_config(base_model=str(still_base), num_pairs=40, sft_epochs=0.0, output_dir=tmp_path / side)
        command = [sys.executable, "-c", LOSSES, json.dumps(vars(config))]
        shown = subprocess.check_output(command, cwd=ROOT, env=os.environ | environment, text=True)
        losses.append(json.loads(shown.splitlines()[-1]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3) and losses[0][0] == pytest.approx(0.6931, abs=1e-4)
