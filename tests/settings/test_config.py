"""Settings: the tutorial's numbers, YAML and overrides, and errors that name their line."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

import pytest
from pydantic import BaseModel, ValidationError

from offbook.errors import ConfigError, suggest
from offbook.settings.config import Config, keys
from offbook.settings.file import read_yaml
from offbook.settings.names import FOREIGN_KEYS, OTHER_NAMES

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    [*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "src/offbook/samples").glob("*.yaml")]
)

SPELLING = "check indentation, colons and quotes"
TUTORIAL = {
    "lora.r": 8,
    "lora.lora_alpha": 32,
    "lora.lora_dropout": 0.1,
    "lora.target_modules": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ),
    "train.batch_size": 16,
    "train.num_train_epochs": 3,
    "train.learning_rate": 1e-4,
    "train.lr_scheduler_type": "linear",
    "train.warmup_ratio": 0.0,
    "train.weight_decay": 0.0,
    "train.max_grad_norm": 1.0,
}


def written(folder: Path, text: str) -> Path:
    path = folder / "role.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.load(path, overrides)
    return str(caught.value)


def test_the_defaults_are_the_tutorials_numbers_where_they_fit_any_base():
    settings = Config().flat()
    fitted = dict.fromkeys(("train.learning_rate", "train.warmup_ratio"), "auto")
    assert {key: settings[key] for key in TUTORIAL} == TUTORIAL | fitted


def test_the_demo_recipe_keeps_the_rate_that_it_names():
    train = Config.load(ROOT / "recipes/smollm2-demo.yaml").train
    assert (train.learning_rate, train.warmup_ratio, train.num_train_epochs) == (1e-3, 0, 2)


def test_without_a_file_the_defaults_are_loaded():
    assert Config.load() == Config()


def test_an_empty_file_gives_the_defaults(tmp_path):
    assert Config.load(written(tmp_path, "# nothing yet\n")) == Config()


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path):
    path = written(tmp_path, "data: {system: 你是甄嬛。}\ntrain:\n  seed: 7\n")
    expected = {**Config().flat(), "data.system": "你是甄嬛。", "train.seed": 7}
    assert Config.load(path).flat() == expected


def test_an_override_wins_over_the_file(tmp_path):
    path = written(tmp_path, "train: {seed: 7, batch_size: 4}\n")
    train = Config.load(path, ["train.seed=8", "train.seed=9"]).train
    assert (train.seed, train.batch_size) == (9, 4)


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_way_to_write_a_small_number_is_a_number(tmp_path, number):
    path = written(tmp_path, f"train: {{learning_rate: {number}}}\n")
    assert Config.load(path).train.learning_rate == 1e-4
    assert Config.load(None, [f"train.learning_rate={number}"]).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.train=a=b.json", "data.train", "a=b.json"),
        ("data.system=null", "data.system", None),
        ("data.ignore_keys=[id, source]", "data.ignore_keys", ("id", "source")),
        ("data.validation=held-out.jsonl", "data.validation", "held-out.jsonl"),
        ("data.validation=0", "data.validation", 0.0),
        ("lora.target_modules=all-linear", "lora.target_modules", "all-linear"),
        ("lora.target_modules=[q_proj]", "lora.target_modules", ("q_proj",)),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
        ("train.max_steps=3", "train.max_steps", 3),
        ("output_dir=[unclosed", "output_dir", "[unclosed"),
    ],
)
def test_an_override_is_read_as_yaml(override, key, value):
    assert Config.load(None, [override]).flat()[key] == value


def test_override_changes_a_copy():
    config = Config()
    assert config.override("lora.r=4", "train.seed=1").flat() == {
        **config.flat(),
        "lora.r": 4,
        "train.seed": 1,
    }
    assert config == Config()


def test_every_error_in_a_file_is_reported_at_once_with_its_line(tmp_path):
    path = written(
        tmp_path,
        "data:\n"
        "  max_lenght: 384\n"
        "lora:\n"
        "  r: 0\n"
        "  lora_dropout: often\n"
        "train:\n"
        "  lr_scheduler_type: cosin\n",
    )
    assert set(complaint(path, "data.validation=0.7").splitlines()) == {
        "command line: data.validation=0.7: data.validation: "
        "give a share of the rows between 0 and 0.5, or a file, not 0.7",
        f'{path}:2: unknown key "data.max_lenght"; did you mean "data.max_length"?',
        f"{path}:4: lora.r: input should be greater than or equal to 1, not 0",
        f"{path}:5: lora.lora_dropout: input should be a valid number, "
        "unable to parse string as a number, not 'often'",
        f"{path}:7: train.lr_scheduler_type: "
        "input should be 'linear', 'cosine' or 'constant', not 'cosin'",
    }


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.learning_rat=1e-4", "train.learning_rate"),
        ("lora.lora_alfa=32", "lora.lora_alpha"),
        ("data.lora_alpha=32", "lora.lora_alpha"),
        ("train.max_length=384", "data.max_length"),
        ("learning_rate=1e-4", "train.learning_rate"),
        ("outputdir=runs/x", "output_dir"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(override, meant):
    key = override.partition("=")[0]
    assert complaint(None, override) == (
        f'command line: {override}: unknown key "{key}"; did you mean "{meant}"?'
    )


VALUES = {
    "model.base": "x",
    "data.train": "x",
    "data.system": "x",
    "output_dir": "x",
    "lora.target_modules": "q_proj",
    "train.lr_scheduler_type": "cosine",
    "model.precision": "float32",
    "train.warmup_ratio": "0.5",
    "lora.lora_dropout": "0.5",
    "data.validation": "0.5",
}


@pytest.mark.parametrize("section", ["", "train.", "model."])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[(name, meant) for meant, names in OTHER_NAMES.items() for name in names],
        ("learning_rate", "train.learning_rate"),
        ("Learning-Rate", "train.learning_rate"),
        ("lerning_rate", "train.learning_rate"),
        ("batch_size", "train.batch_size"),
        ("lora_dropout", "lora.lora_dropout"),
    ],
)
def test_a_name_of_another_trainer_is_suggested_and_can_be_set(section, name, meant):
    override = f"{section}{name}=1"
    if f"{section}{name}" in keys():
        pytest.skip("the name of a setting here")
    found = re.search(r'did you mean "(.*)"\?$', complaint(None, override))
    assert found
    assert found[1] == meant
    assert found[1] != f"{section}{name}"
    value = VALUES.get(meant, "9")
    assert str(Config.load(None, [f"{meant}={value}"]).flat()[meant]).startswith(("('", value))


@pytest.mark.parametrize(
    ("override", "meant"),
    [("Train.seed=3", "train"), ("LORA.r=3", "lora"), ("modle.base=x", "model")],
)
def test_a_section_is_suggested_for_a_section(override, meant):
    assert complaint(None, override).endswith(f'; did you mean "{meant}"?')
    Config.load(None, [f"{meant}.{override.partition('.')[2]}"])


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("train.load_in_4bit=true", "model.quantization=nf4"),
        ("bf16=true", "model.precision=bfloat16"),
        ("train.fp16=true", "model.precision=float16"),
        ("warmup_steps=10", "train.warmup_ratio=0.1"),
        ("train.micro_batch_size=4", "train.batch_size=16"),
        ("train.per_device_train_batch_size=4", "train.batch_size=16"),
        ("gradient_accumulation_steps=4", "train.batch_size=16"),
        ("fp16=true", "model.precision=bfloat16"),
        ("trust_remote_code=true", ""),
    ],
)
def test_the_setting_that_does_the_same_can_be_set(override, instead):
    key = instead.partition("=")[0]
    assert (f"set {key}" if instead else "; remove it") in complaint(None, override)
    Config.load(None, [instead] if instead else [])


def test_the_advice_of_each_key_of_another_trainer_is_tried_above():
    (mark,) = test_the_setting_that_does_the_same_can_be_set.pytestmark
    tried = {override.partition("=")[0].split(".")[-1] for override, _ in mark.args[1]}
    assert tried == set(FOREIGN_KEYS)


def test_a_key_similar_to_no_other_is_refused_with_all_keys_of_its_section():
    message = complaint(None, "model.attn_implementation=eager")
    assert message == (
        "command line: model.attn_implementation=eager: "
        'unknown key "model.attn_implementation"; '
        "valid keys here: model.base, model.revision, model.template, model.device, "
        "model.precision, model.quantization"
    )
    values = ("smollm2-135m", "main", "chatml", "cpu", "float32", "nf4")
    for key, value in zip(message.partition("here: ")[2].split(", "), values, strict=True):
        assert Config.load(None, [f"{key}={value}"]).flat()[key] == value


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        (
            "train.per_device_train_batch_size",
            "set train.batch_size to the examples each optimizer",
        ),
        (
            "train.gradient_accumulation_steps",
            "set train.batch_size to the examples each optimizer",
        ),
        ("train.fp16", "set model.precision"),
        ("train.bf16", "set model.precision"),
        ("model.trust_remote_code", "remove it; offbook never runs code that comes with a model"),
    ],
)
def test_a_key_of_another_trainer_is_refused_with_what_to_do_instead(tmp_path, key, advice):
    section, _, name = key.partition(".")
    path = written(tmp_path, f"{section}:\n  {name}: true\n")
    assert complaint(path) == f'{path}:2: unknown key "{key}"; {FOREIGN_KEYS[name]}'
    assert FOREIGN_KEYS[name].startswith(advice)


def test_a_key_set_twice_is_refused_with_the_second_line(tmp_path):
    path = written(tmp_path, "train:\n  seed: 1\n  batch_size: 4\n  seed: 2\n")
    assert complaint(path) == f'{path}:4: "seed" is set twice; remove one of them'


def test_a_section_set_twice_is_refused(tmp_path):
    path = written(tmp_path, "train: {seed: 1}\nlora: {r: 4}\ntrain: {batch_size: 4}\n")
    assert complaint(path) == f'{path}:3: "train" is set twice; remove one of them'


@pytest.mark.parametrize("text", ["- train\n- lora\n", "lighthouse\n", "5\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path, text):
    path = written(tmp_path, text)
    assert complaint(path) == (
        f"{path}: the configuration is not a mapping; write `section: {{key: value}}`"
    )


def test_a_section_that_is_not_a_mapping_is_refused(tmp_path):
    path = written(tmp_path, "lora: {r: 4}\ntrain: 5\n")
    assert complaint(path) == (
        f"{path}:2: train: input should be a valid dictionary or instance of TrainSettings, not 5"
    )


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("train:\n  seed: 1\n\tbatch_size: 4\n", 3, "found character '\\t' that cannot start any"),
        ("train:\n  seed: 1\n   batch_size: 4\n", 3, "mapping values are not allowed here"),
        ("lora: {r: 4\ntrain: {seed: 1}\n", 2, "expected ',' or '}', but got"),
        ("data:\n  train: 'rows.json\n", 3, "found unexpected end of stream"),
    ],
)
def test_broken_yaml_is_refused_with_its_line(tmp_path, text, line, problem):
    path = written(tmp_path, text)
    message = complaint(path)
    assert message.startswith(f"{path}:{line}: {problem}")
    assert message.endswith("; check indentation, colons and quotes")


@pytest.mark.parametrize(
    "text", ["train: &a [x]\nlora: *a", 'train: !!int ""', "train: !!bool x", "train: ! x"]
)
def test_yaml_aliases_and_tags_are_refused(tmp_path, text):
    path = written(tmp_path, text)
    line = text.count("\n") + 1
    assert complaint(path).startswith(f"{path}:{line}: YAML aliases and tags are not allowed here;")


def test_a_few_lines_of_yaml_cannot_expand_to_gigabytes(tmp_path):
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 12))]
    path = written(tmp_path, "\n".join(lines))
    assert complaint(path).startswith(f"{path}:2: YAML aliases")
    with pytest.raises(ConfigError):
        Config.load(None, ["train={" + ", ".join(lines) + "}"])


@pytest.mark.parametrize(
    "number", ["9" * 5000, "0x" + "f" * 5000, "1:" * 3000 + "1.5", "0b_", "1" * 400 + ".0"]
)
def test_a_number_that_cannot_be_used_is_refused_with_its_line(tmp_path, number):
    path = written(tmp_path, f"train:\n  seed: {number}\n")
    assert complaint(path).startswith(f"{path}:2: a number that cannot be used; ")
    assert complaint(None, f"train.seed={number}").startswith("command line: train.seed=")


def test_a_date_is_text(tmp_path):
    config = Config.load(written(tmp_path, "output_dir: 2024-02-30\n"))
    assert config.output_dir == "2024-02-30"


def test_an_unprintable_character_is_refused_with_its_line(tmp_path):
    path = written(tmp_path, "train:\n  seed: 1\n  \x01")
    assert complaint(path) == f"{path}:3: an unprintable character, '\\x01'; remove it"


def test_deep_nesting_is_refused(tmp_path):
    deep = "[" * 100_000
    path = written(tmp_path, deep)
    assert complaint(path) == f"{path}:1: nested too deeply for a configuration; {SPELLING}"
    assert Config.load(None, ["output_dir=" + deep]).output_dir == deep


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = written(tmp_path, 'data: {system: "\\ud83d"}\n')
    assert complaint(path) == (
        f"{path}:1: data.system: half a surrogate pair is not text, not '\\ud83d'"
    )
    assert complaint(None, "\ud83d=1").startswith("command line: \ud83d=1: input should be a valid")


def test_an_error_quotes_a_long_value_shortened():
    assert len(complaint(None, "train.seed=" + "x" * 100_000)) < 600


def test_a_path_that_no_file_can_have_is_refused():
    assert "cannot read the configuration (embedded null byte)" in complaint(Path("a\0b"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "role.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain: {seed: 7}\r\n")
    assert Config.load(path).train.seed == 7


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "role.yaml"
    path.write_bytes("data: {system: 你是甄嬛}".encode("gbk"))
    assert complaint(path) == f"{path}: not UTF-8 text; save it as UTF-8"


def test_a_missing_file_is_refused_with_how_to_get_one(tmp_path):
    path = tmp_path / "role.yaml"
    assert complaint(path) == (
        f"{path}: cannot read the configuration (No such file or directory); "
        "`offbook init` writes one to start from"
    )


@pytest.mark.parametrize("argument", ["train.seed", "=3", "role.yaml"])
def test_an_argument_that_sets_nothing_is_refused(argument):
    assert complaint(None, argument) == (
        f'command line: "{argument}" is not a setting; write section.key=value'
    )


@pytest.mark.parametrize("number", [".nan", ".inf"])
def test_a_learning_rate_that_is_not_finite_is_refused(number):
    message = complaint(None, f"train.learning_rate={number}")
    start = f"command line: train.learning_rate={number}: train.learning_rate: input should be"
    assert message == (
        f"{start} a finite number, not {number[1:]}\n{start} 'auto', not {number[1:]}"
    )


@pytest.mark.parametrize("section", ["model", "data", "lora", "train", None])
def test_settings_cannot_be_changed_in_place(section):
    config = Config()
    holder = getattr(config, section) if section else config
    name = next(iter(type(holder).model_fields))
    with pytest.raises(ValidationError, match="Instance is frozen"):
        setattr(holder, name, getattr(holder, name))


@pytest.mark.parametrize(
    "text",
    [
        "你是甄嬛。",
        "line one\nline two\r\n",
        "yes",
        "1e-4",
        "# no comment",
        " edges ",
        "a: b",
        "🙂\t",
        "next\x85line\u2028\ufeff",
        "",
    ],
)
def test_yaml_is_read_back_to_the_same_settings(tmp_path, text):
    config = Config().override(
        "data.validation=held-out.jsonl",
        "data.ignore_keys=[id]",
        "lora.target_modules=all-linear",
        "train.learning_rate=3e-7",
        "train.max_steps=12",
    )
    config = config.with_value("data.system", text).with_value("data.input_separator", text)
    assert config.data.system == text
    assert Config.load(written(tmp_path, config.to_yaml())) == config


def test_yaml_is_readable():
    assert "  system: 你是甄嬛。\n" in Config().override("data.system=你是甄嬛。").to_yaml()


def test_local_files_are_made_absolute_and_names_are_left(tmp_path, monkeypatch):
    (tmp_path / "rows, mine.json").write_text("[]")
    (tmp_path / "held-out.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    config = Config().override(
        "model.base=someone/model",
        "data.train='rows, mine.json'",
        "data.validation=./held-out.jsonl",
    )
    assert config.with_absolute_paths().flat() == {
        **config.flat(),
        "data.train": str(tmp_path / "rows, mine.json"),
        "data.validation": str(tmp_path / "held-out.jsonl"),
    }


@pytest.mark.parametrize("name", ["\x7f.json", "\u2028.json", "\udcff.json", "'.json", "🙂.json"])
def test_a_local_file_of_any_name_is_made_absolute(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("[]")
    monkeypatch.chdir(tmp_path)
    config = Config().with_value("data.train", name).with_absolute_paths()
    assert config.data.train == str(tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "a\0b"])
def test_a_name_that_no_file_can_have_stays_as_it_is(name):
    config = Config().with_value("data.train", name)
    assert config.with_absolute_paths() == config


def test_settings_without_local_files_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Config().with_absolute_paths() == Config()


def test_keys_are_exactly_what_flat_lists():
    assert list(Config().flat()) == list(keys())
    assert {"model.base", "train.learning_rate", "output_dir"} <= set(keys())


@pytest.mark.parametrize("key", list(keys()))
def test_every_key_is_documented(key):
    model: type[BaseModel] = Config
    *sections, name = key.split(".")
    for section in sections:
        model = type(getattr(Config(), section))
        assert model.__doc__
    assert len(model.model_fields[name].description or "") > 10


def test_suggest_returns_none_when_nothing_is_similar():
    assert suggest("sed", ["seed", "batch_size"]) == 'did you mean "seed"?'
    assert suggest("optimizer", ["seed", "batch_size"]) is None


def test_the_shipped_recipes_are_found():
    assert {path.name for path in RECIPES} >= {
        "config.yaml",
        "deepseek-7b-chat.yaml",
        "smollm2-demo.yaml",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_recipe_can_be_loaded(tmp_path, path):
    text = Template(path.read_text(encoding="utf-8")).substitute(
        rows="rows.json", output_dir="runs/role"
    )
    assert Config.load(written(tmp_path, text)) != Config()


def sample(tmp_path, *, uncommented):
    """The settings of the file that `offbook init` writes, and the keys that it sets.

    A line that begins with "#" and no space after it is a setting that is commented out.
    """
    text = (ROOT / "src/offbook/samples/config.yaml").read_text(encoding="utf-8")
    text = Template(text).substitute(rows="rows.json", output_dir="runs/role")
    if uncommented:
        text = re.sub(r"^( *)#(?=\S)", r"\1", text, flags=re.MULTILINE)
    path = written(tmp_path, text)
    _, origins = read_yaml(path)
    return Config.load(path).flat(), {".".join(key) for key in origins} & set(keys())


def test_the_sample_configuration_shows_every_setting(tmp_path):
    settings, shown = sample(tmp_path, uncommented=True)
    assert shown == set(keys())
    assert settings == sample(tmp_path, uncommented=False)[0]


def test_what_the_sample_configuration_comments_out_is_the_default(tmp_path):
    settings, active = sample(tmp_path, uncommented=False)
    default = Config().flat()
    assert {key for key in settings if settings[key] != default[key]} == {
        "data.train",
        "lora.lora_dropout",
        "train.logging_steps",
        "output_dir",
    }
    assert len(active) < len(default)


def test_the_sample_configuration_takes_rows_and_run_directory(tmp_path):
    settings, _ = sample(tmp_path, uncommented=False)
    assert (settings["data.train"], settings["output_dir"]) == ("rows.json", "runs/role")


def test_the_deepseek_recipe_has_the_tutorials_numbers():
    config = Config.load(ROOT / "recipes/deepseek-7b-chat.yaml")
    settings = config.flat()
    assert {key: settings[key] for key in TUTORIAL} == TUTORIAL
    assert config.data.max_length == 384
    assert config.model.base == "deepseek-ai/deepseek-llm-7b-chat"
    assert config.train.gradient_checkpointing
    assert (config.train.logging_steps, config.train.save_steps) == (10, 100)
