"""メモリが足りないときに、マイクロバッチを減らして、同じ結果にたどり着くことを確かめます。"""

import gc

import pytest
import torch
from conftest import finish
from transformers import GPT2Model
from trl import DPOTrainer

import dpo_helpers as dpo

FORMS = (  # CUDA のメモリ不足は、いろいろな誤りとして現れる
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def little_memory(monkeypatch, limit, pairs=20, error=FORMS[0]):
    """limit トークン（採点と生成ではその半分）を超える計算と、pairs を超える参照モデルの計算は、error になります。"""
    forward, reference = GPT2Model.forward, DPOTrainer.compute_ref_log_probs

    def checked(self, input_ids=None, *args, **options):
        if input_ids.numel() > (limit if torch.is_grad_enabled() else limit / 2):
            raise error
        return forward(self, input_ids, *args, **options)

    def checked_reference(self, model, inputs):
        if len(inputs["input_ids"]) > 2 * pairs:
            raise error
        with monkeypatch.context() as patch:
            patch.setattr(GPT2Model, "forward", forward)
            return reference(self, model, inputs)

    monkeypatch.setattr(GPT2Model, "forward", checked)
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", checked_reference)


@pytest.fixture(scope="module")
def config(still_base, small_config):
    """dropout のない小さなモデルの設定を作る関数です。"""
    gc.freeze()  # メモリ不足のたびの、ごみ集めを速くする
    small = {"base_model": str(still_base), "num_pairs": 28, "eval_fraction": 0.3, "sft_epochs": 0.5}
    yield lambda **options: small_config(**small, **options)
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(config):
    """メモリが足りるときの、同じ設定の実行です。"""
    return finish(config())


def test_every_form_of_out_of_memory_is_told_from_other_errors():
    assert all(map(dpo.is_out_of_memory, FORMS))
    assert not dpo.is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_out_of_memory_in_every_phase_gives_the_same_results(whole, config, monkeypatch):
    """SFT と DPO は 130 トークン、採点と生成は 65 トークン、参照モデルは 16 ペアずつしか計算できません。"""
    said = []
    little_memory(monkeypatch, 130, 16, FORMS[-1])
    run = finish(config(), report=said.append)
    assert [text for text in said if "メモリが足りない" in text] == [
        f"メモリが足りないので、マイクロバッチを {size} に減らし、{times} 回分の勾配をためて続けます。"
        "1 ステップで使うペアは変わりません。" for size, times in ((2, 2), (2, 2), (1, 4))  # SFT で一度、DPO で二度
    ]  # fmt: skip
    losses = [[row["loss"] for row in each.history] for each in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)  # TRL は、マイクロバッチごとの平均の平均を取る
    assert run.metrics["eval_loss"] == pytest.approx(whole.metrics["eval_loss"], rel=0.01)


def test_what_cannot_fit_is_one_sentence(config, monkeypatch):
    little_memory(monkeypatch, 10)
    with pytest.raises(dpo.HelperError, match="メモリが足りません。gradient_checkpointing を True にするか"):
        dpo.train(config())


def test_other_errors_are_not_taken_for_memory(config, monkeypatch):
    little_memory(monkeypatch, 0, error=RuntimeError("別の誤り"))
    with pytest.raises(RuntimeError, match="別の誤り"):
        dpo.train(config())


def test_recomputing_in_place_of_memory_changes_no_loss(whole, config):
    run = dpo.train(config(gradient_checkpointing=True))
    assert any(getattr(module, "gradient_checkpointing", False) for module in run.model.modules())
    losses = [[row["loss"] for row in each.history] for each in (run, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
