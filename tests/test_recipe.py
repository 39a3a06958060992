"""Recipes: strict keys, cross-checks before anything runs, and a resolved text that reads back equal."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jielong.align.settings import PPOConfig
from jielong.data.curate import CurateConfig
from jielong.errors import RecipeError, UsageError
from jielong.model.config import ModelConfig
from jielong.model.presets import PRESETS, is_decoder, preset_config
from jielong.recipe import STAGE_SETTINGS, parse_recipe, write_toml
from jielong.recipe.costing import bytes_per_token, plan_recipe
from jielong.recipe.crosscheck import NEEDS
from jielong.recipe.preferences import PpoSettings
from jielong.recipe.shape import NOT_KEYS, EncoderSettings, ModelSettings
from jielong.runtime import detect

RECIPES = Path(__file__).parents[1] / "recipes"
WHOLE = """
[run]
seed = 3

[data.world]
megabytes = 1

[data.sources.novels]
path = "novels.txt"
licence = "public domain"

[data.sources.reviews]
path = "reviews.jsonl"
licence = "CC BY 4.0"

[curate]
sources = ["world", "novels"]
heldout_fraction = 0.1

[tokenizer]
vocab_size = 300

[pretrain]
context_tokens = 64
batch_rows = 4
num_steps = 10
learning_rate = 1e-3
warmup_steps = 2

[pretrain.model]
width = 32
decoder_layers = 2
num_heads = 2

[sft]
sources = ["world"]
num_conversations = 50
batch_rows = 4
epochs = 1
learning_rate = 1e-3

[reward]
num_prompts = 8
replies_per_prompt = 4
batch_rows = 2
epochs = 1
learning_rate = 1e-3
max_new_tokens = 16

[ppo]
num_iterations = 2
rollout_rows = 8
minibatch_rows = 4
max_new_tokens = 16
kl_coefficient = 0.05
learning_rate = 1e-4
critic_learning_rate = 1e-4

[grpo]
num_iterations = 2
rollout_rows = 8
group_size = 4
minibatch_rows = 4
max_new_tokens = 16
kl_coefficient = 0.05
learning_rate = 1e-4
lora = {rank = 2, alpha = 4, targets = ["q"]}

[dpo]
sources = ["world"]
num_prompts = 8
replies_per_prompt = 4
beta = 0.1
batch_rows = 2
epochs = 1
learning_rate = 1e-4
max_new_tokens = 16

[best_of_n]
num_prompts = 8
replies_per_prompt = 4
batch_rows = 2
epochs = 1
learning_rate = 1e-4
max_new_tokens = 16

[promote]
judge = "heldout"

[mlm]
context_tokens = 64
batch_rows = 4
num_steps = 10
learning_rate = 1e-3

[mlm.model]
width = 32
encoder_layers = 2
num_heads = 2

[finetune]
task = "classification"
sources = ["reviews"]
limit_examples = 40
batch_rows = 4
epochs = 1
learning_rate = 1e-3

[evaluate]
questions_per_skill = 5
max_new_tokens = 16
"""


CHAT_KINDS = [kind for kind in NEEDS if kind != "translate"]  # which is another system; tests/stages has its recipe


def write(tmp_path: Path, text: str = WHOLE) -> Path:
    path = tmp_path / "whole.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, *overrides: str, text: str = WHOLE) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(write(tmp_path, text), overrides)
    return str(caught.value)


def without(table: str) -> str:
    """WHOLE with one stage taken out."""
    blocks = WHOLE.split("\n\n")
    return "\n\n".join(block for block in blocks if not block.strip().startswith((f"[{table}]", f"[{table}.")))


def test_stages_stand_in_file_order_with_their_kinds(tmp_path: Path) -> None:
    recipe = parse_recipe(write(tmp_path))
    assert [(stage.name, stage.kind) for stage in recipe.stages] == [(kind, kind) for kind in CHAT_KINDS]
    assert recipe.run.name == "whole"  # the file's, when left out
    assert recipe.run.seed == 3
    assert recipe.all_sources() == ("world", "novels", "reviews")
    assert recipe.source("novels").licence == "public domain"


def test_resolved_text_reads_back_equal(tmp_path: Path) -> None:
    recipe = parse_recipe(write(tmp_path))
    path = tmp_path / "resolved.toml"
    path.write_text(write_toml(recipe), encoding="utf-8")
    again = parse_recipe(path)
    assert (again.run, again.data, again.stages) == (recipe.run, recipe.data, recipe.stages)
    assert again.hash == recipe.hash
    assert "[reward]" not in write_toml(recipe, stage="sft") and "[sft]" in write_toml(recipe, stage="sft")


def test_hash_follows_settings_and_seed_but_not_the_place_of_the_data(tmp_path: Path) -> None:
    path = write(tmp_path)
    base = parse_recipe(path).hash
    assert parse_recipe(path, ["data.root=/elsewhere"]).hash == base
    for override in ("run.seed=4", "sft.epochs=2", "data.world.megabytes=2"):
        assert parse_recipe(path, [override]).hash != base
    assert parse_recipe(path, ["run.seed=4"]).world_seed != parse_recipe(path).world_seed


def test_later_override_wins(tmp_path: Path) -> None:
    assert parse_recipe(write(tmp_path), ["run.seed=4", "run.seed=5"]).run.seed == 5


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pretrain.learning_rat=1", "learning_rat = 1: unknown key; did you mean `learning_rate`?"),
        ("pretrain.num_steps=many", 'num_steps = "many"'),
        ("pretrain.num_steps=0", "num_steps = 0: must be greater than or equal to 1"),
        ("pretrain.model.widht=3", "model.widht = 3: unknown key; did you mean `width`?"),
        ("pretrain.model.preset=jie-q", "preset 'jie-q' is not known"),
        ("pretrain.schedule=cosin", "did you mean 'cosine'?"),
        ("pretrain.epochs=2", "set exactly one of num_steps and epochs"),
        ("pretrain.warmup_steps=10", "warmup_steps = 10 must be less than num_steps = 10"),
        ("pretrain.decay_fraction=0.5", "decay_fraction has no effect with schedule = 'cosine'"),
        ("pretrain.model.num_heads=3", "num_heads = 3 does not divide width = 32"),
        ("ppo.kl_horizon_episodes=5", "kl_horizon_episodes has no effect without target_kl"),
        ("ppo.minibatch_rows=3", "minibatch_rows = 3 must divide rollout_rows = 8"),
        ("ppo.inner_kl_limit=0", "inner_kl_limit is 0.0; it must be above 0, or off"),
        ("ppo.missing_eos_score=true", "missing_eos_score = true: must be number"),
        ("reward.label_agreement=1", "label_agreement = 1: must be less than 1"),
        ("evaluate.questions_per_skill=201", "questions_per_skill = 201: must be less than or equal to 200"),
        ("sft.heldout_fraction=0.1", "heldout_fraction = 0.1 has no effect: the world has held-out conversations"),
        ("ppo.inner_kl_limit=-1.0", "inner_kl_limit is -1.0; it must be above 0"),
        ("ppo.top_k=3", "top_k = 3: unknown key"),
        ("curate.languages=['fr']", "'fr' is not one of en, zh, other"),
        ("curate.max_digit_fracton=0.1", "did you mean `max_digit_fraction`?"),
        ("data.sources.novels.sha256=abc", "is not 64 hexadecimal digits"),
        ("data.sources.novels.format=jsnl", "did you mean 'jsonl'?"),
        ("run.dtype=float16", "must be 'auto', 'float32' or 'bfloat16'"),
        ("tokenizer.vocab_size=100", "greater than or equal to 263"),
        ("sft.sources=['worl']", "sources names 'worl'"),
        ("sft.sources=[]", "sources is empty"),
        ("reward.max_new_tokens=64", "max_new_tokens = 64 leaves no room for a prompt in context_tokens = 64"),
        ("evaluate.prompts=['hi']", "prompts has no effect where the world asks"),
        ("evaluate.kind=evalute", "did you mean 'evaluate'?"),
        ("run.name='../up'", "name = '../up'"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, override: str, expected: str) -> None:
    text = refusal(tmp_path, override)
    assert expected in text
    assert "whole.toml" in text


def test_preset_and_sizes(tmp_path: Path) -> None:
    sizes = "[pretrain.model]\nwidth = 32\ndecoder_layers = 2\nnum_heads = 2\n"
    preset = WHOLE.replace(sizes, '[pretrain.model]\npreset = "jie-s"\n')
    model = parse_recipe(write(tmp_path, preset)).stages[2].settings.model
    assert model.sizes() == PRESETS["jie-s"]
    wider = parse_recipe(write(tmp_path, preset), ["pretrain.model.ffn_width=999"]).stages[2].settings.model
    assert wider.sizes() == {**PRESETS["jie-s"], "ffn_width": 999}
    same = f"pretrain.model.width={PRESETS['jie-s']['width']}"
    assert "has no effect: preset 'jie-s' has it" in refusal(tmp_path, same, text=preset)
    assert "missing: width" in refusal(tmp_path, text=WHOLE.replace("width = 32\n", ""))


SIZES = "[pretrain.model]\nwidth = 32\ndecoder_layers = 2\nnum_heads = 2\n"


def with_preset(name: str) -> str:
    return WHOLE.replace(SIZES, f'[pretrain.model]\npreset = "{name}"\n')


def model_of(tmp_path: Path, text: str, *overrides: str) -> ModelConfig:
    settings = parse_recipe(write(tmp_path, text), [f"pretrain.model.{one}" for one in overrides]).stages[2].settings
    return ModelConfig(vocab_size=300, max_length=settings.context_tokens, **settings.model.sizes())


def test_every_field_of_a_decoder_is_a_key(tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(ModelSettings.model_fields) == (fields - set(NOT_KEYS)) | {"preset"}
    model = model_of(
        tmp_path, with_preset("jie-s"), "activation=gelu", "norm=layer", "norm_at=post", "qkv_bias=true",
        "qk_norm=true", "num_experts=4", "experts_per_token=2", "windows=[0, 16]", "dropout=0.1", "init_std=0.02",
        "positions=learned", "embedding_scale=2",
    )  # fmt: skip
    assert (model.activation, model.norm, model.norm_at, model.positions) == ("gelu", "layer", "post", "learned")
    assert (model.qkv_bias, model.qk_norm, model.windows, model.dropout) == (True, True, (0, 16), 0.1)
    assert (model.num_experts, model.experts_per_token, model.embedding_scale) == (4, 2, 2)
    assert (model.width, model.ffn_width) == (128, 352)


@pytest.mark.parametrize("name", [name for name in PRESETS if is_decoder(name)])
def test_every_decoder_preset_can_be_pretrained(tmp_path: Path, name: str) -> None:
    model = model_of(tmp_path, with_preset(name))
    assert model == preset_config(name, vocab_size=300, max_length=64)


def test_resolved_model_tables_are_read_back(tmp_path: Path) -> None:
    text = with_preset("gpt2-124m")
    recipe = parse_recipe(write(tmp_path, text), ["pretrain.model.windows=[0, 8]", "pretrain.model.dropout=0.2"])
    (tmp_path / "again.toml").write_text(write_toml(recipe))
    again = parse_recipe(tmp_path / "again.toml")
    assert again.stages[2].settings.model == recipe.stages[2].settings.model
    assert again.hash == recipe.hash


@pytest.mark.parametrize(
    ("preset", "override", "expected"),
    [
        ("bert-base", "dropout=0.2", "preset 'bert-base' is no decoder, which this stage trains: it has 12 encoder"),
        ("transformer-big", "dropout=0.2", "preset 'transformer-big' is no decoder"),
        ("gpt3-175", "dropout=0.2", "did you mean 'gpt3-175b'?"),
        ("jie-s", "norm=rms", "norm = rms has no effect: preset 'jie-s' has it"),
        ("gpt2-124m", "qkv_bias=true", "qkv_bias = True has no effect: preset 'gpt2-124m' has it"),
        ("gpt2-124m", "rope_base=5000", "rope_base = 5000.0 has no effect: positions are 'learned'"),
        ("jie-s", "normalise_experts=false", "normalise_experts = False has no effect: there are no experts"),
        ("mixtral-8x7b", "ffn_bias=true", "ffn_bias is on, but experts have no biases"),
        ("jie-s", "experts_per_token=2", "experts_per_token is 2; with num_experts = 0 legal are 0 only"),
        ("jie-s", "num_experts=4", "experts_per_token is 0; with num_experts = 4 legal are 1 to 4"),
        ("jie-s", "activation=swigl", "activation is 'swigl'; legal are swiglu, geglu"),
        ("jie-s", "activation=swigl", "did you mean swiglu?"),
        ("jie-s", "windows=[-1]", "windows is (-1,)"),
        ("jie-s", "windows=3", "windows = 3: must be"),
        ("jie-s", "num_kv_heads=3", "num_kv_heads is 3; it must divide num_heads, 4"),
        ("jie-s", "width=0", "width is 0; it must be a whole number, 1 or more"),
        ("jie-s", "qk_norm=1", "qk_norm = 1: must be boolean"),
        ("jie-s", "num_expert=4", "unknown key; did you mean `num_experts`?"),
        ("jie-s", "vocab_size=300", "unknown key"),
        ("jie-s", "encoder_layers=2", "unknown key"),
        ("jie-s", "head=scalar", "unknown key"),
    ],
)
def test_wrong_model_tables_are_refused(tmp_path: Path, preset: str, override: str, expected: str) -> None:
    text = refusal(tmp_path, f"pretrain.model.{override}", text=with_preset(preset))
    assert expected in text and "whole.toml" in text


@pytest.mark.parametrize("size", ["width=0", "num_heads=0", "width=-1"])
def test_sizes_of_nothing_are_refused(tmp_path: Path, size: str) -> None:
    name, _, value = size.partition("=")
    assert f"{name} is {value}; it must be a whole number, 1 or more" in refusal(tmp_path, f"pretrain.model.{size}")


def test_plain_feed_forwards_are_four_times_as_wide(tmp_path: Path) -> None:
    assert model_of(tmp_path, WHOLE, "activation=gelu").ffn_width == 4 * 32
    assert model_of(tmp_path, WHOLE, "activation=geglu").ffn_width == 96


def test_sizes_left_out_are_derived(tmp_path: Path) -> None:
    sizes = parse_recipe(write(tmp_path)).stages[2].settings.model.sizes()
    assert sizes == {
        "width": 32, "decoder_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_size": 16, "ffn_width": 96,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("removed", "needy"),
    [("curate", "tokenizer"), ("tokenizer", "pretrain"), ("pretrain", "sft"), ("sft", "reward"), ("reward", "ppo")],
)
def test_a_missing_stage_is_named(tmp_path: Path, removed: str, needy: str) -> None:
    text = refusal(tmp_path, text=without(removed))
    assert f"[{needy}]" in text and f"add [{removed}]" in text


def test_a_stage_in_the_wrong_place_is_told_to_move(tmp_path: Path) -> None:
    block = "[tokenizer]\nvocab_size = 300\n"
    text = WHOLE.replace(block, "") + "\n" + block
    assert "[tokenizer] stands after it; move it up" in refusal(tmp_path, text=text)


def test_sft_may_start_from_a_folder_but_not_beside_pretraining(tmp_path: Path) -> None:
    text = """
[sft]
model = "some/folder"
sources = ["world"]
num_conversations = 9
batch_rows = 2
num_steps = 3
learning_rate = 1e-4
"""
    assert parse_recipe(write(tmp_path, text)).stages[0].settings.model == "some/folder"
    assert "would leave the pretrained model before it without effect" in refusal(tmp_path, "sft.model=some/folder")


def heldout_sources_without_effect_are_refused(tmp_path: Path) -> None:
    assert "[data.sources.novels]: no stage names it" in refusal(tmp_path, "curate.sources=['world']")
    assert "[data.world]: no curate stage has" in refusal(tmp_path, "curate.sources=['novels']")
    assert "did you mean 'novels'" in refusal(tmp_path, "curate.sources=['novel']")
    missing = WHOLE.replace("[data.world]\nmegabytes = 1\n", "")
    assert "say how much of it" in refusal(tmp_path, text=missing)
    assert "num_conversations is required" in refusal(tmp_path, text=WHOLE.replace("num_conversations = 50\n", ""))


def test_settings_of_the_world_are_refused_without_it(tmp_path: Path) -> None:
    text = WHOLE.replace("[data.world]\nmegabytes = 1\n", "").replace('["world", "novels"]', '["novels"]')
    text = text.replace('sources = ["world"]\nnum_conversations = 50', 'sources = ["novels"]')
    text = text.replace("num_prompts = 8\nreplies_per_prompt = 4\n", 'sources = ["novels"]\n', 1)
    own = 'sources = ["world"]\nnum_prompts = 8\nreplies_per_prompt = 4\nbeta'
    text = text.replace(own, 'comparisons = "reward"\nbeta')
    path = write(tmp_path, text)
    stages = parse_recipe(path, ["reward.temperature=0.9", "reward.accumulate=2"]).stages
    assert len(stages) == len(CHAT_KINDS)
    for override, expected in (
        ("reward.label_agreement=0.8", "label_agreement = 0.8 has no effect: only the world's replies are labelled"),
        ("reward.num_prompts=8", 'num_prompts = 8 has no effect without "world" in sources'),
        ("ppo.watch_every=5", "watch_every = 5 has no effect: only the world has a judge"),
        ("promote.judge=gold", 'judge = "gold" knows the world\'s stories alone'),
    ):
        assert expected in refusal(tmp_path, override, text=text)


def test_curation_of_the_world_alone_divides_nothing(tmp_path: Path) -> None:
    text = WHOLE.replace('[data.sources.novels]\npath = "novels.txt"\nlicence = "public domain"\n', "")
    text = text.replace('["world", "novels"]', '["world"]')
    assert "heldout_fraction = 0.1 has no effect: the world has held-out text of its own" in refusal(
        tmp_path, text=text
    )
    tail = ("curate.heldout_fraction=0.0", "curate.heldout=tail")
    assert "heldout = tail has no effect" in refusal(tmp_path, *tail, text=text)


def test_text_beside_ppo_wants_a_stage_that_has_it(tmp_path: Path) -> None:
    text = without("pretrain").replace("[sft]\n", '[sft]\nmodel = "some/folder"\n')
    assert parse_recipe(write(tmp_path, text)).stages
    said = refusal(tmp_path, "ppo.ptx_coefficient=0.5", text=text)
    assert "ptx_source = 'pretrain' wants the rows of such a stage" in said
    assert parse_recipe(write(tmp_path, text), ["ppo.ptx_coefficient=0.5", "ppo.ptx_source=sft"]).stages
    assert parse_recipe(write(tmp_path), ["ppo.ptx_coefficient=0.5", "ppo.ptx_rows=4"]).stages
    for setting in ("ppo.ptx_source=sft", "ppo.ptx_rows=4"):
        assert "has no effect with ptx_coefficient = 0" in refusal(tmp_path, setting)
    assert "did you mean 'sft'" in refusal(tmp_path, "ppo.ptx_coefficient=1.0", "ppo.ptx_source=sfd")


def test_off_is_written_false_and_reads_back(tmp_path: Path) -> None:
    recipe = parse_recipe(write(tmp_path), ["ppo.missing_eos_score=false", "ppo.inner_kl_limit=false"])
    settings = recipe.stages[5].settings.optimisation()
    assert (settings.missing_eos_score, settings.inner_kl_limit) == (None, None)
    path = tmp_path / "resolved.toml"
    path.write_text(write_toml(recipe), encoding="utf-8")
    assert "missing_eos_score = false" in path.read_text() and parse_recipe(path).hash == recipe.hash
    zero = parse_recipe(write(tmp_path), ["ppo.missing_eos_score=0"]).stages[5].settings.optimisation()
    assert zero.missing_eos_score == 0.0 and zero.missing_eos_score is not False


def test_two_stages_of_a_kind_have_names_of_their_own(tmp_path: Path) -> None:
    more = WHOLE.replace("[reward]", '[polish]\nkind = "sft"\nsources = ["world"]\nnum_conversations = 5\n'
                         "batch_rows = 1\nnum_steps = 1\nlearning_rate = 1e-4\n\n[reward]")  # fmt: skip
    stages = parse_recipe(write(tmp_path, more)).stages
    assert [stage.name for stage in stages if stage.kind == "sft"] == ["sft", "polish"]


def test_other_faults_of_the_file(tmp_path: Path) -> None:
    assert "[pretran]: kind = 'pretran' is no kind of stage; did you mean 'pretrain'?" in refusal(
        tmp_path, text=WHOLE.replace("[pretrain]", "[pretran]").replace("[pretrain.model]", "[pretran.model]")
    )
    assert "seed = 1 stands outside a table" in refusal(tmp_path, text="seed = 1\n" + WHOLE)
    assert "has no stage" in refusal(tmp_path, text="[run]\nseed = 1\n")
    assert "has no table [stf]; did you mean [sft]?" in refusal(tmp_path, "stf.epochs=2")
    with pytest.raises(UsageError, match="table.key=value"):
        parse_recipe(write(tmp_path), ["run.seed"])


def test_every_kind_has_settings_and_needs() -> None:
    assert set(STAGE_SETTINGS) == set(NEEDS)


def test_ppo_settings_are_those_of_the_floor_below() -> None:
    ours = PpoSettings.model_fields
    for field in dataclasses.fields(PPOConfig):
        assert field.name in ours, field.name
        if not ours[field.name].is_required():
            assert ours[field.name].default == field.default, field.name


def test_curation_rules_are_those_of_the_floor_below(tmp_path: Path) -> None:
    settings = parse_recipe(write(tmp_path), ["curate.min_characters=11"]).stages[0].settings
    assert settings.rules() == CurateConfig(min_characters=11)


def test_plan_covers_every_stage_and_grows_with_the_work(tmp_path: Path) -> None:
    runtime = detect("cpu", "float32")
    path = write(
        tmp_path, without("data").replace('["world", "novels"]', '["world"]').replace("heldout_fraction = 0.1", "")
    )
    data = '[data.world]\nmegabytes = 1\n\n[data.sources.reviews]\npath = "reviews.jsonl"\n\n[curate]'
    path.write_text(path.read_text().replace("[curate]", data))
    plan = plan_recipe(parse_recipe(path), runtime, 1e11)
    assert list(plan["stages"]) == CHAT_KINDS
    assert plan["totals"]["complete"] and plan["totals"]["seconds"] > 0
    assert plan["stages"]["pretrain"]["tokens"] == 10 * 4 * 64
    twice = plan_recipe(parse_recipe(path, ["pretrain.num_steps=20"]), runtime, 1e11)
    assert twice["stages"]["pretrain"]["flops"] == 2 * plan["stages"]["pretrain"]["flops"]
    assert twice["stages"]["pretrain"]["seconds"] == pytest.approx(2 * plan["stages"]["pretrain"]["seconds"])


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "best_of_n", "mlm", "finetune", "translate"])
def test_a_step_of_several_micro_batches_holds_gradients_beside_activations(tmp_path: Path, stage: str) -> None:
    """In every stage that accumulates, also where the amount of text is not known."""
    if stage == "translate":
        path, settings = RECIPES / "multi30k-en-de.toml", ["data.root=nowhere"]
    elif stage in ("mlm", "finetune"):
        path, settings = RECIPES / "bert-films.toml", ["data.root=nowhere", "polarity.limit_examples=500"]
    else:  # of the size of novels.txt nothing is known
        path, settings = write(tmp_path, WHOLE.replace("num_steps = 10", "epochs = 1")), []
    name = "polarity" if stage == "finetune" else stage
    held = []
    for more in ([], [f"{name}.accumulate=2"]):
        plan = plan_recipe(parse_recipe(path, [*settings, *more]), detect("cpu", "float32"), 1e11)
        held.append(plan["stages"][name]["memory_bytes"])
    assert held[0] < held[1]


def test_8_bits_are_counted_where_there_are_any(tmp_path: Path) -> None:
    """Not in stages that go on in dtype."""
    path, runtime = write(tmp_path), detect("cpu", "float32")
    narrow = ["run.fp8=true", "run.dtype=bfloat16"]
    plans = [plan_recipe(parse_recipe(path, more), runtime, 1e11)["stages"] for more in ([], narrow)]
    saves = {
        name: plans[1][name]["memory_bytes"] < plans[0][name]["memory_bytes"]
        for name in ("sft", "reward", "ppo", "dpo")
    }
    assert saves == {"sft": True, "reward": True, "ppo": False, "dpo": False}


def test_plan_says_what_it_cannot_know(tmp_path: Path) -> None:
    plan = plan_recipe(parse_recipe(write(tmp_path)), detect("cpu", "float32"), 1e11)
    assert plan["stages"]["curate"]["seconds"] is None  # novels.txt is not on this machine
    assert plan["totals"]["complete"] is False


def test_bytes_per_token_is_one_without_merges() -> None:
    assert bytes_per_token(263) == 1.0
    assert bytes_per_token(2 * 263) == pytest.approx(1.55)
    assert bytes_per_token(10**9) == 4.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mlm.model.preset=jie-s", "preset 'jie-s' is no encoder, which this stage trains: it has 0 encoder layers"),
        ("mlm.model.decoder_layers=2", "only an encoder-only model"),
        ("mlm.model.windows=[4]", "an encoder sees the whole row"),
        ("mlm.model={preset='jie-encoder-s', num_experts=2, experts_per_token=1}", "want losses of their router"),
        ("mlm.mask_fraction=1.0", "mask_fraction = 1.0: must be less than 1"),
        ("finetune.task=translation", "must be 'classification', 'pairs', 'similarity', 'choice' or 'span'"),
        ('finetune.sources=["world", "reviews"]', "the world has no labelled examples"),
        ('finetune.heldout_sources=["reviews"]', "'reviews' is in sources and in heldout_sources"),
        ('curate.keep_out=["finetun"]', "keep_out names 'finetun', which is no stage of kind finetune; did you mean"),
        ("finetune.pooling=max", "must be 'cls' or 'mean'"),
        ('finetune.labels=["a"]', "wants two or more different ones"),
        ('finetune.heldout_sources=["elsewhere"]', "sources names 'elsewhere'"),
    ],
)
def test_classics_settings_are_checked(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, override)


def test_a_task_wants_a_model_to_start_from(tmp_path: Path) -> None:
    stage = '[finetune]\ntask = "choice"\nsources = ["quiz"]\nnum_steps = 1\nbatch_rows = 4\nlearning_rate = 1e-3\n'
    text = f'[data.sources.quiz]\npath = "quiz.jsonl"\n\n{stage}'
    assert "needs a stage of kind pretrain before it" in refusal(tmp_path, text=text)
    assert parse_recipe(write(tmp_path, text + 'model = "somewhere"\n')).stages[0].settings.model == "somewhere"


def test_an_encoder_by_its_sizes_and_by_its_preset(tmp_path: Path) -> None:
    stages = {stage.name: stage.settings for stage in parse_recipe(write(tmp_path)).stages}
    config = ModelConfig(vocab_size=300, max_length=64, **stages["mlm"].model.sizes())
    assert (config.encoder_layers, config.decoder_layers, config.head, config.token_types) == (2, 0, "masked_lm", 2)
    small = EncoderSettings(preset="bert-tiny", dropout=0.0)
    made = ModelConfig(**{"vocab_size": 300, "max_length": 64, **small.sizes()})
    assert made == dataclasses.replace(preset_config("bert-tiny", 300, 64), dropout=0.0)
    assert set(EncoderSettings.model_fields) - set(ModelSettings.model_fields) == {"encoder_layers", "token_types"}
