"""What serving engines and trainers record, format by format: columns, special cases, and what is refused.

The laws that all importers obey are in `test_foreign.py`.
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from foreign import (
    HIDDEN,
    SLOTS,
    SPEC,
    all_layers,
    npy,
    physical_map,
    responses,
    safetensors,
    sample_trace,
    selection,
    write_flame,
    write_lines,
    write_loads,
    write_megatron,
    write_passes,
    write_responses,
    write_selection,
    write_stat,
    write_tokens,
    write_trtllm,
)

from moesim.base.errors import FormatError, InputError, UnknownName
from moesim.trace import DECODE, PREFILL, TRAIN, Trace, read_any
from moesim.trace.formats.model import numbered_layers


@pytest.fixture
def whole() -> Trace:
    return sample_trace()


@pytest.fixture
def weights(whole) -> np.ndarray:
    return np.random.default_rng(1).random(whole.routes.shape).astype(np.float16).astype(float)


def refused(path, message: str, **options) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read_any(path, **({"model": SPEC} | options))
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


class TestSglangStat:
    def test_unused_slots_of_the_ring_and_dense_layers_are_left_out(self, tmp_path, whole):
        pytest.importorskip("torch")
        trace = read_any(write_stat(tmp_path, whole), model=SPEC, phase="decode", domain="chat")
        assert np.array_equal(trace.counts, whole.counts)
        assert set(trace.phase) == {DECODE}
        assert trace.domains == ("chat",)
        assert trace.origin["steps"] == "slots of a ring buffer, in no order of time"
        assert "phase" not in trace.origin

    def test_json_of_one_matrix(self, tmp_path, whole):
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"logical_count": all_layers(whole.loads, axis=0).tolist()}))
        trace = read_any(path, model=SPEC)
        assert np.array_equal(trace.loads, whole.loads)
        assert trace.origin["phase"].startswith("assumed prefill")

    def test_routed_dense_layers_tell_of_another_model(self, tmp_path, whole):
        counts = all_layers(whole.loads, axis=0)
        counts[next(layer for layer in range(HIDDEN) if layer not in SPEC.layer_ids), 3] = 5
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"logical_count": counts.tolist()}))
        refused(path, "is dense in mixed, but tokens were routed in it; give another model=")

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            (np.zeros((2, HIDDEN, 8), int), "logical_count: expected counts, found zeros only"),
            (np.ones((2, HIDDEN, 7), int), "expected 8 experts as in mixed, found 7"),
            (np.ones((2, 4, 8), int), "expected the 5 decoder layers of mixed or its 3 MoE layers, found 4"),
            (np.ones((2, HIDDEN, 8)), "expected whole numbers"),
            (-np.ones((2, HIDDEN, 8), int), "negative count"),
            (np.ones(3, int), r"expected whole numbers \[slots, decoder layers, experts\]"),
        ],
    )
    def test_refused(self, tmp_path, counts, message):
        path = tmp_path / "counts.json"
        path.write_text(json.dumps({"logical_count": counts.tolist()}))
        refused(path, message)


class TestSglangRecorder:
    """The modes per_pass and per_token, whose ids are physical."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch", reason="torch writes and reads the recorder's files")

    def test_counts_of_slots_become_counts_of_experts(self, tmp_path, whole):
        path = write_passes(tmp_path, whole)
        trace = read_any(path, model=SPEC)
        assert np.array_equal(trace.counts, whole.counts)
        assert trace.step.tolist() == whole.step_ids.tolist()
        assert trace.origin["ranks"] == 2
        assert trace.origin["ids"].startswith("physical ids were mapped back")
        # the folder and the file of another rank are the same run
        assert read_any(path.parent, model=SPEC).counts.tolist() == trace.counts.tolist()
        assert read_any(tmp_path / path.name.replace("_0.pt", "_1.pt"), model=SPEC).digest == trace.digest

    def test_physical_ids_are_never_taken_for_logical_ones(self, tmp_path, whole):
        # even where every slot number is an expert number, too
        import torch

        identity = np.tile(np.arange(8), (HIDDEN, 1))
        swapped = identity[:, ::-1].copy()
        counts = np.zeros((HIDDEN, 8), np.int32)
        counts[:, 0] = 5
        record = {"forward_pass_id": 0, "rank": 0, "global_physical_count": torch.from_numpy(counts)}
        path = tmp_path / "run.pt"
        torch.save({"records": [record], "last_physical_to_logical_map": torch.from_numpy(swapped)}, path)
        assert read_any(path, model=SPEC).loads.tolist() == [[0] * 7 + [5]] * 3

    def test_tokens_come_back_with_passes_positions_phases_and_ranks(self, tmp_path, whole):
        trace = read_any(write_tokens(tmp_path, whole), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert np.array_equal(trace.position, whole.position)
        assert np.array_equal(trace.phase, whole.phase)
        assert np.array_equal(trace.source, whole.request % 2)
        # a prompt is one pass and one request; what is decoded later cannot be told from other requests
        assert len(set(trace.request)) == 3 + int((whole.phase == DECODE).sum())
        assert trace.origin["requests"].startswith("not recorded")

    def test_ranks_that_recorded_the_same_tokens_count_once(self, tmp_path, whole):
        trace = read_any(write_tokens(tmp_path, whole, same=True), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert set(trace.source) == {-1}
        assert trace.origin["ranks"] == "all 2 recorded the same tokens, one is kept"

    def test_ranks_that_share_attention_count_once_beside_those_that_do_not(self, tmp_path, whole):
        pairs = tmp_path / "pairs"
        pairs.mkdir()
        write_tokens(tmp_path, whole)
        for rank in range(4):  # 0 and 1 recorded what rank 0 did, 2 and 3 what rank 1 did
            recorded = next(tmp_path.glob(f"*_{rank // 2}.pt"))
            shutil.copy(recorded, pairs / recorded.name.replace(f"_{rank // 2}.pt", f"_{rank}.pt"))
        trace = read_any(pairs, model=SPEC)
        assert np.array_equal(np.sort(trace.routes, axis=0), np.sort(whole.routes, axis=0))
        assert set(trace.source) == {-1}
        assert trace.origin["ranks"] == "some of 4 recorded the same tokens, 2 that differ are kept"

    def test_a_recording_without_a_pass_is_known_for_what_it_is(self, tmp_path):
        import torch

        path = tmp_path / "idle_1.0_0.pt"
        experts = torch.from_numpy(np.tile(np.arange(SLOTS) % 8, (HIDDEN, 1)))
        torch.save({"records": [], "last_physical_to_logical_map": experts}, path)
        refused(path, "records: expected passes, found none; record while requests run")

    def test_mixed_passes_and_a_phase_that_is_given(self, tmp_path, whole):
        path = self.tokens(tmp_path, forward_mode=3, positions=[0, 1, 9], extend_seq_lens=[2, 1])
        assert read_any(path, model=SPEC).phase.tolist() == [PREFILL, PREFILL, DECODE]
        assert read_any(path, model=SPEC, phase="train").phase.tolist() == [TRAIN] * 3
        odd = self.tokens(tmp_path, forward_mode=9)
        refused(odd, r"records\.0, forward_mode: expected one of .* found 9; give phase=")
        assert read_any(odd, model=SPEC, phase="decode").phase.tolist() == [DECODE] * 3

    @staticmethod
    def tokens(folder, **change):
        import torch

        slots = np.full((HIDDEN, 3, 8), -1, np.int32)
        slots[..., :2] = [0, 1]
        record = {
            "forward_pass_id": 4, "rank": 0, "forward_mode": 2, "positions": [7, 8, 9], "extend_seq_lens": None,
            "topk_ids_of_layer": slots, "global_physical_count": np.zeros((HIDDEN, SLOTS), np.int32),
        }  # fmt: skip
        record |= change
        record = {key: torch.from_numpy(item) if isinstance(item, np.ndarray) else item for key, item in record.items()}
        experts = np.tile(np.arange(SLOTS) % 8, (HIDDEN, 1))
        path = folder / "alone.pt"
        torch.save({"records": [record], "last_physical_to_logical_map": torch.from_numpy(experts)}, path)
        return path

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"topk_ids_of_layer": np.full((HIDDEN, 3, 8), SLOTS, np.int32)},
                r"expected slots -1\.\.9, found 10\.\.10",
            ),
            (
                {"topk_ids_of_layer": np.zeros((HIDDEN, 3, 8), np.int32)},
                "expected 2 picks a token as in mixed, found 8",
            ),
            ({"topk_ids_of_layer": np.zeros((2, 3, 8), np.int32)}, "expected 5 layers as the map, found 2"),
            ({"topk_ids_of_layer": np.zeros((HIDDEN, 3, 2), np.int32)}, "expert 0 occurs twice in one pick"),
            ({"positions": [1]}, "positions: expected 3 positions as there are tokens, found 1"),
            ({"forward_mode": 1, "extend_seq_lens": [9]}, "extend_seq_lens: expected lengths of 3 tokens"),
            ({"forward_pass_id": None}, r"records\.0, forward_pass_id: expected a number from 0 up, found None"),
        ],
    )
    def test_records_that_do_not_fit_are_refused(self, tmp_path, change, message):
        refused(self.tokens(tmp_path, **change), message)

    def test_a_rank_that_is_missing_or_loaded_another_map_is_refused(self, tmp_path, whole):
        import torch

        path = write_passes(tmp_path, whole, ranks=3)
        path.with_name(path.name.replace("_0.pt", "_1.pt")).unlink()
        refused(path, r"the file of rank 1 is missing beside those of ranks \[0, 2\]")
        path.with_name(path.name.replace("_0.pt", "_2.pt")).unlink()
        path = write_passes(tmp_path, whole)
        first = torch.load(path, weights_only=True)
        torch.save(first | {"last_physical_to_logical_map": torch.from_numpy(physical_map(8))}, path)
        refused(path, r"last_physical_to_logical_map: differs from that of .*_0\.pt")

    def test_a_map_without_an_expert_is_refused(self, tmp_path, whole):
        import torch

        bad = physical_map()
        bad[2] = 0
        path = write_passes(tmp_path, whole, ranks=1, last_physical_to_logical_map=torch.from_numpy(bad))
        refused(path, "no slot of decoder layer 2 holds expert 1")

    def test_every_rank_puts_its_own_clock_into_the_name(self, tmp_path, whole):
        path = write_passes(tmp_path, whole, ranks=2)
        one_clock = read_any(path, model=SPEC)
        other = path.with_name(path.name.replace("_0.pt", "_1.pt"))
        other.rename(path.with_name("expert_distribution_recorder_1700000000.9173512_1.pt"))
        assert read_any(path, model=SPEC).digest == one_clock.digest
        assert read_any(tmp_path, model=SPEC).digest == one_clock.digest

    def test_two_runs_in_a_folder_are_not_mixed(self, tmp_path, whole):
        path = write_passes(tmp_path, whole)
        path.with_name("expert_distribution_recorder_1700000001.5_0.pt").write_bytes(path.read_bytes())
        with pytest.raises(FormatError, match="expected the rank files of one run, found 2 runs; give one file"):
            read_any(tmp_path, format="sglang-pass", model=SPEC)


class TestRoutedExperts:
    @pytest.mark.parametrize("engine", ["sglang", "openai", "vllm"])
    def test_every_encoding(self, tmp_path, whole, engine):
        trace = read_any(write_responses(tmp_path, whole, engine=engine), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert np.array_equal(trace.request, whole.request)
        assert np.array_equal(trace.position, whole.position)
        assert np.array_equal(trace.phase, whole.phase)
        assert trace.origin["captured_by"] == ("vLLM" if engine == "vllm" else "SGLang")

    def test_rows_that_were_not_asked_for_shift_positions(self, tmp_path, whole):
        path = write_responses(tmp_path, whole, start=2)
        trace = read_any(path, model=SPEC)
        assert np.array_equal(trace.position, whole.position[whole.position >= 2])
        assert np.array_equal(trace.phase, whole.phase[whole.position >= 2])
        # where the response does not count tokens, the user can say
        bare = [{"routed_experts": item["meta_info"]["routed_experts"]} for item in responses(whole, start=2)]
        path.write_text("\n".join(json.dumps(item) for item in bare))
        assert read_any(path, model=SPEC).position.min() == 0
        assert np.array_equal(read_any(path, model=SPEC, start=2).position, trace.position)
        assert "assumed prefill" in read_any(path, model=SPEC).origin["phase"]

    def test_one_response_and_a_list_of_them_with_domains(self, tmp_path, whole):
        items = responses(whole)
        for item, name in zip(items, ("law", "code", "law"), strict=True):
            item["category"] = name
        path = tmp_path / "responses.json"
        for text in (json.dumps(items), json.dumps(items, indent=2)):
            path.write_text(text)
            trace = read_any(path, model=SPEC, domain="category")
            assert trace.domains == ("law", "code")
            assert np.array_equal(trace.of_domain("code").routes, whole.routes[whole.request == 1])
        path.write_text(json.dumps(items[0], indent=2))
        assert np.array_equal(read_any(path, model=SPEC).routes, whole.routes[whole.request == 0])
        refused(path, "response 0, colour: expected the name of a domain, found None", domain="colour")

    def test_several_choices_are_several_requests(self, tmp_path, whole):
        item, other = responses(whole, engine="vllm")[:2]
        item["choices"] += other["choices"]
        path = tmp_path / "responses.json"
        path.write_text(json.dumps(item))
        assert read_any(path, model=SPEC).request.tolist() == [0] * 6 + [1] * 4

    def test_layers_that_were_not_captured_are_no_picks(self, tmp_path, whole):
        dense = all_layers(whole.routes.astype(np.int32), axis=1)
        dense[3, 2] = 0
        path = tmp_path / "responses.json"
        path.write_text(json.dumps({"routed_experts": base64.b64encode(dense.tobytes()).decode()}))
        trace = read_any(path, model=SPEC)
        assert trace.routes[3, 1].tolist() == [-1, -1]
        assert np.array_equal(np.delete(trace.routes, 3, axis=0), np.delete(whole.routes, 3, axis=0))

    @pytest.mark.parametrize(
        ("payload", "message"),
        [
            ("no base64!", "routed_experts: expected base64, found"),
            (
                base64.b64encode(bytes(44)).decode(),
                r"int32 ids of 5 layers and 2 picks .*\(40 bytes\) .*found 44 bytes",
            ),
            (npy(np.zeros((3, HIDDEN, 4), np.uint8)), r"expected ids \[tokens, layers, 2\] of mixed, found uint8"),
            (npy(np.zeros((3, 4, 2), np.uint8)), "expected the 5 decoder layers of mixed or its 3 MoE layers, found 4"),
            (npy(np.full((3, HIDDEN, 2), [1, 9])), r"expert id 9 is not in -1\.\.7"),
            (npy(np.zeros(3))[:-20], "not a complete npy file"),
            (17, "expected base64 text, found int"),
            (None, "expected routed_experts, found none; ask for them with each request"),
        ],
    )
    def test_refused(self, tmp_path, payload, message):
        path = tmp_path / "responses.json"
        path.write_text(json.dumps({"routed_experts": payload}))
        refused(path, message, format="routed-experts")

    def test_a_response_with_more_rows_than_tokens_is_refused(self, tmp_path, whole):
        item = responses(whole)[0]
        item["meta_info"]["completion_tokens"] = 1
        path = tmp_path / "responses.json"
        path.write_text(json.dumps(item))
        refused(path, "line 1, meta_info, routed_experts: holds 6 tokens, more than the 4 of its request less one")


class TestTrtllm:
    def test_ranks_are_summed_and_layers_of_other_heads_left_out(self, tmp_path, whole):
        write_trtllm(tmp_path, whole)
        extra = {f"{100 + step}_{HIDDEN}": np.ones(8) for step in range(whole.steps)}
        (tmp_path / "rank2.safetensors").write_bytes(safetensors(extra))
        trace = read_any(tmp_path, model=SPEC)
        assert np.array_equal(trace.counts, whole.counts)
        assert trace.step.tolist() == [100, 101, 102]
        assert (trace.origin["ranks"], trace.origin["left_out"]) == (3, 1)

    def test_refused(self, tmp_path, whole):
        path = write_trtllm(tmp_path, whole)
        refused(path, r"num_experts: expected 4 as in other, found 8", model=replace(SPEC, experts=4, name="other"))
        (tmp_path / "rank2.safetensors").write_bytes(safetensors({"100_3": np.ones(8)}))
        refused(path, r"its layer numbers \(1, 2, 3, 4\) are not all 3 MoE layers of mixed")
        refused(path, "layer 3 is no MoE layer of mixed when layers count as 'decoder'", numbering="decoder")
        (tmp_path / "rank2.safetensors").write_bytes(safetensors({"103_1": np.ones(8)}))
        refused(path, "103_2: expected these counts, found none")
        (tmp_path / "rank2.safetensors").write_bytes(safetensors({"100_1": np.ones(7)}))
        refused(path, r"100_1: expected counts \[8\] named ITERATION_LAYER")
        (tmp_path / "rank2.safetensors").write_bytes(safetensors({"100_1": -np.ones(8)}))
        refused(path, "100_1: expected counts from 0 up")
        (tmp_path / "rank2.safetensors").write_bytes(b"\xff" * 20)
        refused(path, r"rank2\.safetensors: not a complete safetensors file")
        # a rank that lacks a layer or an iteration which the others have
        for lacking in ((100, SPEC.layer_ids[-1]), (102, SPEC.layer_ids[0])):
            counts = {(100 + step, layer): np.ones(8) for step in range(whole.steps) for layer in SPEC.layer_ids}
            del counts[lacking]
            text = {f"{step}_{layer}": array for (step, layer), array in counts.items()}
            (tmp_path / "rank2.safetensors").write_bytes(safetensors(text))
            place = "{}_{}".format(*lacking)
            refused(path, rf"rank2\.safetensors: {place}: expected these counts as in rank0\.safetensors, found none")
        nothing = {f"{100 + step}_{layer}": np.zeros(8) for step in range(2) for layer in SPEC.layer_ids}
        for rank in range(3):
            (tmp_path / f"rank{rank}.safetensors").write_bytes(safetensors(nothing))
        refused(path, "expected counts, found none; record while requests run")
        for rank in range(3):
            (tmp_path / f"rank{rank}.safetensors").unlink()
        refused(path, "expected files rank0.safetensors")


class TestMegatron:
    @pytest.mark.parametrize("first", [0, 1])
    def test_layers_count_from_nought_or_one_and_micro_batches_follow_each_other(self, tmp_path, whole, first):
        trace = read_any(write_megatron(tmp_path, whole, first=first), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert np.array_equal(trace.step, whole.step)
        assert set(trace.phase) == {TRAIN}
        assert trace.origin["phase"] == "assumed train, the files do not say"
        assert trace.spec.layer_ids == SPEC.layer_ids

    def test_ranks_are_sources(self, tmp_path, whole):
        write_megatron(tmp_path, whole, ranks=2)
        trace = read_any(tmp_path, model=SPEC, domain="pile")
        assert trace.tokens == whole.tokens
        assert set(trace.source) == {0, 1}
        assert np.array_equal(trace.counts, whole.counts)
        assert trace.has_steps
        assert trace.domains == ("pile",)

    def test_ranks_that_routed_the_same_tokens_count_once(self, tmp_path, whole):
        path = write_megatron(tmp_path, whole)
        (tmp_path / "router_trace_rank1.jsonl").write_bytes(path.read_bytes())
        trace = read_any(tmp_path, model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert set(trace.source) == {0}
        assert trace.origin["alike"] == "left out, as others routed the same tokens: 1 rank"

    def test_pipeline_stages_hold_different_layers_of_the_same_tokens(self, tmp_path, whole):
        path = write_megatron(tmp_path, whole)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for rank, layers in enumerate([(2, 3), (5,)]):
            kept = [json.dumps(line) for line in lines if line["layer"] in layers]
            (tmp_path / f"router_trace_rank{rank}.jsonl").write_text("\n".join(kept))
        trace = read_any(tmp_path, model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert set(trace.source) == {0}
        assert trace.origin["stages"] == "2 pipeline stages, their ranks paired in order"

    @pytest.mark.parametrize(
        ("edit", "message"),
        [
            (lambda lines: lines[:1] + lines[2:], r"step 0, layer 3: expected 3 tokens as in others, found 6"),
            (lambda lines: lines[7:] + lines[:7], "step: expected steps in order, found 0 behind 2"),
            (lambda lines: [lines[0] | {"num_tokens": 9}], "line 1, num_tokens: says 9, but there are 3"),
            (lambda lines: [lines[0] | {"top_indices": [[1, 2, 3]]}], "line 1, top_indices: expected 2 picks a token"),
            (lambda lines: [lines[0] | {"top_indices": [[1, 2], [3]]}], "found rows of several lengths"),
            (lambda lines: [lines[0] | {"layer": "x"}], "line 1, layer: expected a number from 0 up, found 'x'"),
            (lambda lines: [lines[0] | {"layer": 77}], r"its layer numbers \(77\) are not all 3 MoE layers"),
            (lambda lines: [[]], "line 1: expected a JSON object, found list"),
        ],
    )
    def test_refused(self, tmp_path, whole, edit, message):
        path = write_megatron(tmp_path, whole)
        lines = edit([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("\n".join(json.dumps(line) for line in lines))
        refused(path, message, format="megatron")

    def test_ranks_that_end_early_or_hold_odd_layers_are_refused(self, tmp_path, whole):
        path = write_megatron(tmp_path, whole, ranks=2)
        text = path.read_text().splitlines()
        path.write_text("\n".join(text[:7]))
        with pytest.raises(FormatError, match=r"rank0\.jsonl: ends some steps before the file of another rank"):
            read_any(tmp_path, model=SPEC)
        path.write_text("\n".join(line for line in text if '"layer": 2' not in line))
        with pytest.raises(FormatError, match="the ranks hold neither the same layers nor those of stages"):
            read_any(tmp_path, model=SPEC)


class TestExpertSelection:
    def test_a_folder_of_subjects(self, tmp_path, whole):
        write_selection(tmp_path, whole)
        trace = read_any(tmp_path, model=SPEC)
        law = trace.of_domain("law")
        assert np.array_equal(law.routes, whole.routes[whole.request == 1])
        assert np.array_equal(law.phase, whole.phase[whole.request == 1])
        assert read_any(tmp_path, model=SPEC, domain="mmlu").domains == ("mmlu",)

    def test_requests_come_in_natural_order(self, tmp_path, whole):
        for number in (10, 9):
            (tmp_path / f"{number}.json").write_text(json.dumps(selection(whole, number - 9)))
        trace = read_any(tmp_path, model=SPEC)
        assert np.array_equal(trace.routes[:6], whole.routes[whole.request == 0])

    def test_of_a_folder_the_broken_file_is_named(self, tmp_path, whole):
        write_selection(tmp_path, whole)
        (tmp_path / "law" / "7.json").write_text(json.dumps([{str(n): [[0, 8]] for n in SPEC.layer_ids}]))
        refused(tmp_path, r"law/7\.json: .*expert id 8 is not in -1\.\.7", format="expert-selection")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ([], "expected a list of steps, found none"),
            ({}, "expected a list of steps, found none"),
            ([{"one": None}], "step 0: expected ids by the number of the decoder layer"),
            ([{"0": None, "1": [[0, 1]]}], r"step 0: its layer numbers \(1\) are not all"),
            ([{"1": [[0, 1]], "2": [[0, 1]], "4": [[0, 1]]}, {"1": [[0, 1]]}], "step 1: holds other layers"),
            ([{"1": [[0, 1]], "2": [[0, 1]] * 2, "4": [[0, 1]]}], "step 0, layer 2: expected 1 token as in layer 1"),
            ([{"1": [[0, 1, 2]], "2": [[0]], "4": [[0]]}], "step 0, layer 1: expected 2 picks a token"),
            ([{"1": [[0, 99999]], "2": [[0, 1]], "4": [[0, 1]]}], r"expected expert ids from -1 up, found 0\.\.99999"),
        ],
    )
    def test_refused(self, tmp_path, content, message):
        path = tmp_path / "0.json"
        path.write_text(json.dumps(content))
        refused(path, message, format="expert-selection")


class TestFlame:
    def test_scores_are_weights_and_sequences_are_assumed(self, tmp_path, whole, weights):
        trace = read_any(write_flame(tmp_path, whole, weights), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert np.array_equal(trace.weights, weights.astype(np.float16))
        assert trace.origin["requests"] == "assumed to have 2048 tokens each, the files do not say"
        assert trace.origin["phase"].startswith("assumed prefill")
        assert "phase" not in read_any(tmp_path, model=SPEC, phase="train").origin
        assert read_any(tmp_path, model=SPEC, request_tokens=5).request.tolist() == (np.arange(18) // 5).tolist()

    def test_a_model_without_a_preset(self, tmp_path, whole, weights):
        write_flame(tmp_path, whole, weights)
        trace = read_any(tmp_path, experts=8, dims="deepseek-v2-lite")
        assert (trace.spec.experts, trace.spec.top_k, trace.spec.hidden) == (8, 2, 2048)
        assert trace.spec.layer_ids == SPEC.layer_ids

    def test_of_several_iterations_one_is_chosen(self, tmp_path, whole, weights):
        write_flame(tmp_path, whole, weights)
        other = sample_trace(5)
        write_flame(tmp_path, other, weights, iteration=900)
        with pytest.raises(FormatError, match="holds iterations 500, 900; choose with iteration="):
            read_any(tmp_path, model=SPEC)
        with pytest.raises(FormatError, match="has no iteration 7; it holds 500, 900"):
            read_any(tmp_path, model=SPEC, iteration=7)
        assert np.array_equal(read_any(tmp_path, model=SPEC, iteration=900).routes, other.routes)
        assert np.array_equal(read_any(tmp_path / "actives" / "iter_500", model=SPEC).routes, whole.routes)

    def test_refused(self, tmp_path, whole, weights):
        import pyarrow as pa
        import pyarrow.parquet as pq

        write_flame(tmp_path, whole, weights)
        layer = tmp_path / "actives" / "iter_500" / "layer_02.parquet"
        for table, message in [
            (
                {"indices": [[0, 1]] * 3, "scores": [[0.5, 0.5]] * 3},
                r"indices: expected \[18, 2\] values, found \[3, 2\]",
            ),
            ({"indices": [[0, 1], [2]], "scores": [[0.5, 0.5]] * 2}, "indices: expected equally long lists"),
            ({"indices": [1, 2], "scores": [0.5, 0.5]}, "indices: expected a column of lists"),
            ({"scores": [[0.5, 0.5]]}, "indices: expected a column of lists"),
        ]:
            pq.write_table(pa.table(table), layer)
            with pytest.raises(FormatError, match=message):
                read_any(tmp_path, model=SPEC)
        with pytest.raises(InputError, match="request_tokens: expected at least 1"):
            read_any(tmp_path, model=SPEC, request_tokens=0)


class TestJsonl:
    def test_requests_positions_and_weights(self, tmp_path, whole, weights):
        trace = read_any(write_lines(tmp_path, whole, weights), model=SPEC)
        assert np.array_equal(trace.routes, whole.routes)
        assert np.array_equal(trace.weights, weights.astype(np.float16))
        assert np.array_equal(trace.request, whole.request)
        assert np.array_equal(trace.position, whole.position)
        assert trace.origin["phase"].startswith("assumed prefill")

    def test_bare_lines_count_tokens_layer_by_layer(self, tmp_path, whole):
        path = tmp_path / "picks.jsonl"
        lines = [{"layer": layer, "topk_ids": whole.routes[:, i].tolist()} for i, layer in enumerate(SPEC.layer_ids)]
        path.write_text("\n".join(json.dumps(line) for line in lines))
        assert np.array_equal(read_any(path, model=SPEC).routes, whole.routes)
        lines[1]["topk_ids"] = lines[1]["topk_ids"][:-1]
        path.write_text("\n".join(json.dumps(line) for line in lines))
        refused(path, "layer 2: expected 18 tokens as in other layers, found 17")

    def test_layers_by_ordinal_and_only_some_of_them(self, tmp_path):
        path = tmp_path / "picks.jsonl"
        path.write_text('{"layer_id": 0, "experts": [3, 1], "step": 4, "phase": "decode", "domain": "law"}\n')
        refused(path, r"its layer numbers \(0\) are not all 3 MoE layers of mixed")
        trace = read_any(path, model=SPEC, numbering="ordinal")
        assert trace.spec.layer_ids == (1,)
        assert (trace.step.tolist(), trace.phase.tolist(), trace.domains) == ([4], [DECODE], ("law",))
        with pytest.raises(UnknownName, match="did you mean 'ordinal'"):
            read_any(path, model=SPEC, numbering="ordinals")

    def test_tokens_that_a_layer_does_not_tell_have_no_pick_there(self, tmp_path, whole):
        path = write_lines(tmp_path, whole)
        path.write_text("\n".join(path.read_text().splitlines()[:-1]))
        trace = read_any(path, model=SPEC)
        assert trace.routes[-1, -1].tolist() == [-1, -1]
        assert trace.origin["missing"] == "not recorded: 1 pick of tokens in layers"

    def test_lines_of_a_token_agree_and_what_none_tells_is_said(self, tmp_path):
        path = tmp_path / "picks.jsonl"
        told = {"step": 3, "phase": "decode", "domain": "law"}

        def write(*tokens: list[dict]) -> None:
            lines = [
                {"layer": layer, "topk_ids": [4, 5], "token_idx": token} | facts
                for token, own in enumerate(tokens)
                for layer, facts in zip(SPEC.layer_ids, own, strict=True)
            ]
            path.write_text("\n".join(json.dumps(line) for line in lines))

        # one line of the token says it, or all do
        for own in ([told, {}, {}], [told, told, told]):
            write(own)
            trace = read_any(path, model=SPEC)
            assert (trace.step.tolist(), trace.phase.tolist(), trace.domains) == ([3], [DECODE], ("law",))
            assert "phase" not in trace.origin
        for key, other in (("step", 4), ("phase", "prefill"), ("domain", "code")):
            write([told, told, told | {key: other}])
            refused(path, f"line 3, {key}: token 0 has another {key} here than on its first line")
        write([told, told, told], [{"step": 3}] * 3)
        trace = read_any(path, model=SPEC)
        assert trace.phase.tolist() == [DECODE, PREFILL]
        assert trace.origin["phase"] == "assumed prefill, the file does not say it of 1 token"
        write([told, told, told], [{}] * 3)
        refused(path, "step: expected it for every token or for none")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ({"layer": 1}, "line 2: expected the keys layer and topk_ids"),
            ({"layer": 1, "topk_ids": [1]}, "line 2, topk_ids: expected 2 picks a token as in mixed, found 1"),
            ({"layer": 1, "topk_ids": "x"}, "line 2, topk_ids: expected whole numbers"),
            ({"layer": 1, "topk_ids": [[1, 2], [3]]}, "line 2, topk_ids: expected numbers .* rows of several lengths"),
            ({"layer": 1, "topk_ids": [0, 1], "token_idx": 0}, "token 0 occurs twice in layer 1; lines need a request"),
            ({"layer": 2, "topk_ids": [0, 1], "topk_weights": [1]}, "line 2, topk_weights: expected numbers of shape"),
            ({"layer": 2, "topk_ids": [0, 1], "topk_weights": [1, 2]}, "weights in every line or in none"),
            (
                {"layer": 2, "topk_ids": [0, 1], "token_idx": 5, "phase": "nap"},
                "line 2, phase: expected one of prefill",
            ),
        ],
    )
    def test_refused(self, tmp_path, line, message):
        path = tmp_path / "picks.jsonl"
        path.write_text(json.dumps({"layer": 1, "topk_ids": [4, 5], "token_idx": 0}) + "\n" + json.dumps(line))
        refused(path, message, numbering="decoder")


class TestEplbLoads:
    def test_npy_npz_and_torch(self, tmp_path, whole):
        path = write_loads(tmp_path, whole)
        assert np.array_equal(read_any(path, model=SPEC).loads, whole.loads)
        np.savez(tmp_path / "loads.npz", weight=all_layers(whole.loads, axis=0))
        assert np.array_equal(read_any(tmp_path / "loads.npz", model=SPEC).loads, whole.loads)
        np.save(path, whole.counts)
        assert np.array_equal(read_any(path, model=SPEC).counts, whole.counts)
        torch = pytest.importorskip("torch")
        torch.save(torch.from_numpy(whole.loads.copy()), tmp_path / "loads.pt")
        assert np.array_equal(read_any(tmp_path / "loads.pt", "eplb-loads", model=SPEC).loads, whole.loads)

    def test_tensor_of_bfloat16(self, tmp_path):
        torch = pytest.importorskip("torch")
        loads = np.arange(SPEC.layers * SPEC.experts).reshape(SPEC.layers, SPEC.experts)
        torch.save(torch.from_numpy(loads).bfloat16(), tmp_path / "loads.pt")
        assert np.array_equal(read_any(tmp_path / "loads.pt", "eplb-loads", model=SPEC).loads, loads)

    def test_shares_need_a_scale(self, tmp_path, whole):
        path = tmp_path / "loads.npy"
        np.save(path, whole.loads / whole.loads.sum())
        refused(path, "expected whole numbers, found shares; give scale=1000000")
        trace = read_any(path, model=SPEC, scale=int(whole.loads.sum()))
        assert np.array_equal(trace.loads, whole.loads)
        assert trace.origin["scale"] == whole.loads.sum()

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones(3), r"expected loads \[layers, experts\]"),
            (np.ones((3, 7), int), "expected 8 experts as in mixed, found 7"),
            (np.ones((4, 8), int), "expected the 5 decoder layers of mixed or its 3 MoE layers, found 4"),
            (-np.ones((3, 8), int), r"expected loads from 0 to 2\^52, found -1 \(step 0, layer 0, expert 0\)"),
            (np.ones((9, 3, 2)), r"found 2; are these picks \[tokens, layers, picks\]\? they go into a npz file"),
            (np.full((3, 8), np.nan), r"expected loads from 0 to 2\^52, found nan"),
            (np.zeros((3, 8), int), "expected loads, found zeros only"),
            (np.ones((5, 8), int), "decoder layer 0 is dense in mixed, but tokens were routed in it"),
            (np.full((3, 8), "x"), r"expected loads \[layers, experts\]"),
            (np.full((3, 8), {}, object), "not a complete npy file"),
        ],
    )
    def test_refused(self, tmp_path, array, message):
        path = tmp_path / "loads.npy"
        np.save(path, array)
        refused(path, message)


def test_numbers_of_layers_are_matched_as_a_whole():
    # 1, 2, 4 decoder layers; 2, 3, 5 counted from one; 0, 1, 2 ordinals
    for numbers in [(1, 2, 4), (2, 3, 5), (0, 1, 2)]:
        spec, found = numbered_layers("file", "layer", numbers, SPEC, None)
        assert (spec, found) == (SPEC, list(numbers))
    spec, found = numbered_layers("file", "layer", [4, 2, 4], SPEC, "decoder")
    assert (spec.layer_ids, found) == ((2, 4), [2, 4])
