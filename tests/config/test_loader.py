"""Reading a config: values, overrides, paths and error messages."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt.config.loader import load_spec
from malt.config.spec import RunSpec
from malt.engine.job import check_models
from malt.errors import ConfigError

SMALLEST = 'name = "sums"\n[questions]\nsource = "sums.jsonl"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with nothing in it but an empty folder `configs`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


def load(text: str, overrides: Sequence[str] = (), limit: int | None = None) -> RunSpec:
    path = Path("configs/sums.toml")
    path.write_text(text, encoding="utf-8")
    return load_spec(path, overrides, limit)


def refusal(text: str, overrides: Sequence[str] = (), limit: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, overrides, limit)
    return str(caught.value)


def test_a_config_needs_only_a_name_and_a_source(folder: Path) -> None:
    spec = load(SMALLEST)
    assert spec == RunSpec.model_validate({"name": "sums", "questions": {"source": "configs/sums.jsonl"}})


def test_a_config_may_start_with_a_byte_order_mark(folder: Path) -> None:
    assert load("\ufeff" + SMALLEST).name == "sums"


def test_overrides_take_toml_values_by_dotted_path_and_plain_text_without_quotes(folder: Path) -> None:
    spec = load(
        SMALLEST,
        [
            "model.model=hosted_vllm/m",
            "roles.refiner.model=openai/gpt-x",
            "evaluator.model=openai/judge",
            "credit.threshold=0.7",
            'evaluator.kind=["exact","llm"]',
            "run.tracking=shard",
            "dataset.generator_dpo=true",
            'name="other"',
            "roles.generator.extra.chat_template_kwargs.enable_thinking=false",
            "roles.generator.api_base=http://127.0.0.1:8000/v1?a=b",
        ],
    )
    assert spec.roles.refiner.model == "openai/gpt-x"
    assert spec.credit.threshold == 0.7
    assert spec.evaluator.kind == ("exact", "llm")
    assert spec.run.tracking == "shard"
    assert spec.dataset.generator_dpo is True
    assert spec.name == "other"
    assert spec.roles.generator.extra == {"chat_template_kwargs": {"enable_thinking": False}}
    assert spec.roles.generator.api_base == "http://127.0.0.1:8000/v1?a=b"


def test_the_last_of_two_overrides_wins(folder: Path) -> None:
    assert load(SMALLEST, ["credit.threshold=0.1", "credit.threshold=0.2"]).credit.threshold == 0.2


def test_an_empty_override_takes_a_key_back_to_its_default(folder: Path) -> None:
    assert load(SMALLEST + "limit = 3\n", ["questions.limit="]).questions.limit is None


def test_text_that_only_begins_like_toml_stays_text(folder: Path) -> None:
    assert load(SMALLEST, ["model.model=1\nname = 'x'"]).roles.generator.model == "1\nname = 'x'"


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1).filter(str.strip))
def test_a_quoted_override_keeps_its_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("quoted") / "c.toml"
    path.write_text(SMALLEST)
    quoted = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert load_spec(path, [f"model.model={quoted}"]).roles.generator.model == text


def test_limit_takes_the_place_of_the_limit_in_the_file(folder: Path) -> None:
    assert load(SMALLEST + "limit = 3\n", limit=2).questions.limit == 2


def test_a_local_source_is_relative_to_the_config_file(folder: Path) -> None:
    assert load(SMALLEST).questions.source == "configs/sums.jsonl"
    assert load(SMALLEST.replace("sums.jsonl", "../sums.jsonl")).questions.source == "sums.jsonl"


def test_a_local_source_outside_the_current_directory_is_absolute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(SMALLEST)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    spec = load_spec(Path("../configs/sums.toml"))
    assert spec.questions.source == str(folder / "configs" / "sums.jsonl")


@pytest.mark.parametrize(
    "address", ["https://example.org/a.jsonl", "s3://bucket/a.csv", "hf://datasets/a/b/c.parquet", "/tmp/a.jsonl"]
)
def test_addresses_and_absolute_paths_stay_as_they_are(folder: Path, address: str) -> None:
    assert load(SMALLEST.replace("sums.jsonl", address)).questions.source == address


def test_test_sets_and_tokenizers_are_relative_to_the_config_file_too(folder: Path) -> None:
    (folder / "configs" / "tokenizer.json").write_text("{}")
    spec = load(f'{SMALLEST}\n[dataset]\ndecontaminate = ["test.jsonl", "hf://datasets/a/b/c.parquet"]').dataset
    assert spec.decontaminate == ("configs/test.jsonl", "hf://datasets/a/b/c.parquet")
    assert load(f'{SMALLEST}\n[dataset]\ndecontaminate = "t.csv"').dataset.decontaminate == ("configs/t.csv",)
    assert load(f'{SMALLEST}\n[dataset]\ntokenizer = "tokenizer.json"').dataset.tokenizer == "configs/tokenizer.json"
    assert load(f'{SMALLEST}\n[dataset]\ntokenizer = "org/model"').dataset.tokenizer == "org/model"


def test_a_link_keeps_its_own_name(folder: Path) -> None:
    (folder / "blob").write_text("{}")
    (folder / "configs" / "sums.jsonl").symlink_to(folder / "blob")
    assert load(SMALLEST).questions.source == "configs/sums.jsonl"


def test_a_source_given_by_override_may_be_relative_to_the_current_directory(folder: Path) -> None:
    (folder / "mine.csv").write_text("question,answer\n")
    assert load(SMALLEST, ["questions.source=mine.csv"]).questions.source == "mine.csv"
    (folder / "configs" / "mine.csv").write_text("question,answer\n")
    assert load(SMALLEST, ["questions.source=mine.csv"]).questions.source == "configs/mine.csv"


def test_prompts_name_a_folder_relative_to_the_config_file_where_there_is_one(folder: Path) -> None:
    (folder / "configs" / "mine").mkdir()
    assert load('prompts = "./mine"\n' + SMALLEST).prompts == "configs/mine"
    assert load('prompts = "missing/mine"\n' + SMALLEST).prompts == "missing/mine"


@pytest.mark.parametrize(
    ("given", "function"),
    [
        ("mine:grade", "configs/mine.py:grade"),
        ("sub/mine.py:grade", "configs/sub/mine.py:grade"),
        ("json:loads", "json:loads"),
        ("package.mine:grade", "package.mine:grade"),
    ],
)
def test_a_grader_that_lies_beside_the_config_file_is_named_by_its_file(
    folder: Path, given: str, function: str
) -> None:
    (folder / "configs" / "mine.py").write_text("")
    config = SMALLEST + f'\n[evaluator]\nkind = "python"\nfunction = "{given}"\n'
    assert load(config).evaluator.function == function


def test_the_name_of_a_set_is_not_taken_for_a_folder_without_prompts(folder: Path) -> None:
    (folder / "configs" / "math").mkdir()
    assert load('prompts = "math"\n' + SMALLEST).prompts == "math"
    (folder / "configs" / "math" / "generator").mkdir()
    assert load('prompts = "math"\n' + SMALLEST).prompts == "configs/math"


def test_a_prompt_folder_in_the_current_directory_is_told_from_a_set(folder: Path) -> None:
    (folder / "mine" / "verifier").mkdir(parents=True)
    assert load('prompts = "../mine"\n' + SMALLEST).prompts == "./mine"


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: no such config file"):
        load_spec(Path("no.toml"))


def test_a_folder_is_no_config(folder: Path) -> None:
    with pytest.raises(ConfigError, match="configs: cannot be read"):
        load_spec(Path("configs"))


def test_broken_toml_names_file_and_line(folder: Path) -> None:
    assert refusal('name = "sums"\nprompts = \n').startswith("configs/sums.toml:2: not valid TOML: ")


def test_a_wrong_encoding_names_file_and_line(folder: Path) -> None:
    Path("configs/latin.toml").write_bytes(b'# one\nname = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"configs/latin\.toml:2: not UTF-8"):
        load_spec(Path("configs/latin.toml"))


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("[credit]\nthreshold = 1\n", "credit.threshold = 1: must be less than 1"),
        ("limit = 0\n", "questions.limit = 0: must be greater than or equal to 1"),
        ('limit = "x"\n', 'questions.limit = "x": must be a whole number'),
        ("limit = 2.5\n", "questions.limit = 2.5: must be a whole number"),
        ('[credit]\nthreshold = "half"\n', 'credit.threshold = "half": must be a number'),
        ('[dataset]\ngenerator_dpo = "maybe"\n', 'dataset.generator_dpo = "maybe": must be true or false'),
        ("[evaluate]\nseeds = 3\n", "evaluate.seeds = 3: must be a list, in [ ]"),
        ("[roles.generator]\nextra = 3\n", "roles.generator.extra = 3: must be a table"),
        ('format = "gsmk"\n', "must be 'auto', 'gsm8k', 'math', 'csqa' or 'plain'; did you mean 'gsm8k'?"),
        ('[evaluator]\nkind = ["exact", "nmber"]\n', "evaluator.kind = \"nmber\": must be 'llm', 'exact'"),
        ('[evaluator]\nkind = "python"\n', "evaluator: kind 'python' and `function = \"module:function\"` go together"),
        ('[roles]\ngenerator = "gpt"\n', 'roles.generator = "gpt": must be a table, written [roles.generator]'),
        ("[roles.generator]\nmodel = 3\n", "roles.generator.model = 3: must be text, in quotes"),
        ("[roles.generator]\nextra = {x = inf}\n", "roles.generator.extra.x = inf: must be a finite number"),
        ("[limits]\nmax_cost_usd = nan\n", "limits.max_cost_usd = nan: must be a finite number"),
        ("lmit = 3\n", "questions.lmit: unknown key; did you mean questions.limit? Allowed: source, format, limit"),
        ("[questionnaire]\n", "did you mean questions? Allowed: name, questions, prompts"),
        ("threshold = 0.5\n", "questions.threshold: unknown key; did you mean credit.threshold? Allowed: source"),
        ("zzz = 1\n", "questions.zzz: unknown key. Allowed: source"),
        ('[run]\ntask_runner = "celery"\n', 'run.task_runner = "celery": not allowed. Where batches run: threads'),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_allowed(folder: Path, addition: str, message: str) -> None:
    said = refusal(SMALLEST + addition)
    assert said.startswith("configs/sums.toml: ")
    assert message in said


def test_a_missing_key_says_what_it_is_for(folder: Path) -> None:
    said = refusal("[questions]\nsource = 'a.csv'\n")
    assert said == "configs/sums.toml: name: missing. Name of the dataset: lower-case letters, digits and hyphens."
    assert refusal("name = 'sums'\n[questions]\n").count("\n") == 0


def test_an_override_is_named_as_the_place_of_its_error(folder: Path) -> None:
    assert refusal(SMALLEST, ["credit.threshold=2"]) == "--set credit.threshold = 2: must be less than 1"
    assert refusal(SMALLEST, ["branching=x"]).startswith("--set branching: unknown key. Allowed: ")
    assert refusal(SMALLEST, ["growth=ful"]).startswith("--set growth: growth.mode = \"ful\": must be 'full'")
    assert refusal(SMALLEST, ["limits.max_cost_usd=nan"]).startswith(
        "--set limits.max_cost_usd = nan: must be a finite"
    )
    assert refusal(SMALLEST, limit=0).startswith("--limit: questions.limit = 0: ")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["run.mode=batch", "growth=adaptive"], "configs/sums.toml with --set run.mode, --set growth: growth ="),
        (["evaluator.kind=python"], "configs/sums.toml with --set evaluator.kind: evaluator: kind 'python' and"),
        (["credit.threshold=0.7", "evaluator.kind=python"], "configs/sums.toml with --set evaluator.kind: evaluator: "),
    ],
)
def test_an_error_of_a_whole_table_names_the_overrides_in_it(folder: Path, overrides: list[str], place: str) -> None:
    assert refusal(SMALLEST, overrides).startswith(place)


@pytest.mark.parametrize("override", ["credit.threshold", "=1", "credit..threshold=1", "x"])
def test_an_override_must_be_key_and_value(folder: Path, override: str) -> None:
    assert "expected key=value" in refusal(SMALLEST, [override])


def test_an_override_cannot_go_below_a_plain_value(folder: Path) -> None:
    assert refusal(SMALLEST, ["name.x=1"]) == '--set name.x: name is "sums", not a table'


def test_all_errors_are_listed_up_to_five_and_unknown_keys_first(folder: Path) -> None:
    wrong = "".join(f"wrong{n} = 1\n" for n in range(3))
    lines = refusal(SMALLEST + "limit = 0\n" + wrong).splitlines()
    assert len(lines) == 4
    assert "wrong0: unknown key" in lines[0]
    lines = refusal(SMALLEST + wrong + "".join(f"bad{n} = 1\n" for n in range(4))).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "… and 2 more"


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ('[roles.generator]\napi_key = "hush-hush"\n', "roles.generator.api_key"),
        ('[roles.generator]\nextra = {api_key = "hush-hush"}\n', "roles.generator.extra.api_key"),
        ('[roles.generator.extra.extra_headers]\nAuthorization = "hush-hush"\n', "extra_headers.Authorization"),
        ('[roles.generator]\nextra = {tools = [{auth-token = "hush-hush"}]}\n', "extra.tools.auth-token"),
        ('[roles.generator]\napi_key_env = "hush-hush"\n', "roles.generator.api_key_env"),
        ('[roles.generator]\napi_key_env = "gsk_hushhush0123456789abcdef"\n', "roles.generator.api_key_env"),
        ('[roles.generator]\napi_base = "http://h/v1?api_key=hush-hush"\n', "roles.generator.api_base"),
        ('[roles.generator]\nextra = {user = "sk-proj-hush-hush-0123456789"}\n', "roles.generator.extra.user"),
        ('[roles.generator]\nextra = {headers = {X-A = "Bearer hush-hush"}}\n', "roles.generator.extra.headers.X-A"),
        ('[roles.generator]\napi_base = "http://me:hush-hush@host/v1"\n', "roles.generator.api_base"),
        ('OPENAI_API_KEY = "hush-hush"\n', "questions.OPENAI_API_KEY"),
    ],
)
def test_a_secret_is_refused_without_showing_it(folder: Path, addition: str, key: str) -> None:
    said = refusal(SMALLEST + addition)
    assert key in said
    assert "keys are never written in a config; name an environment variable with api_key_env" in said
    assert "hush" not in said


def test_a_secret_in_an_override_is_refused_without_showing_it(folder: Path) -> None:
    said = refusal(SMALLEST, ["roles.refiner.api_key=hush-hush"])
    assert said.startswith("--set roles.refiner.api_key: keys are never written")
    assert "hush" not in said


def test_names_that_only_sound_secret_are_allowed_among_free_parameters(folder: Path) -> None:
    extra = {"max_tokens_to_sample": 3, "prompt_cache_key": "k", "stop_token": "x"}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in extra.items())
    assert load(SMALLEST + "[roles.generator.extra]\n" + text).roles.generator.extra == extra


def test_a_path_that_cannot_be_in_the_file_is_named_by_its_key(folder: Path) -> None:
    said = refusal(f'prompts = "~nobody-of-this-name"\n{SMALLEST}')
    assert said.startswith("configs/sums.toml: prompts: this path cannot be used: ")


@pytest.mark.parametrize(
    "value", ["prompts=~nobody-of-this-name", f"prompts={'a' * 5000}", f"questions.source={'a' * 5000}"]
)
def test_a_path_that_cannot_be_is_refused(folder: Path, value: str) -> None:
    key = value.partition("=")[0]
    assert refusal(SMALLEST, [value]).startswith(f"--set {key}: this path cannot be used: ")


def test_a_file_nested_too_deep_is_refused(folder: Path) -> None:
    assert "nested too deep to be read" in refusal("a = " + "[" * 100_000)


@pytest.mark.parametrize("key", ["roles.generator.temperature", "roles.generator.samples", "questions.limit"])
def test_true_is_no_number(folder: Path, key: str) -> None:
    assert f"--set {key}: is true, and takes neither true nor false" in refusal(SMALLEST, [f"{key}=true"])


def test_a_kind_of_grader_that_there_is_not_is_one_error(folder: Path) -> None:
    assert refusal(SMALLEST, ["evaluator.kind=nubmer"]).count("\n") == 0


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["run.mode=batch", "growth=adaptive"], "asks a level at a time"),
        (["run.mode=batch", "run.task_runner=processes"], "leave task_runner and tracking out"),
        (["run.mode=batch", "run.tracking=branch"], "leave task_runner and tracking out"),
        (["run.wait=false"], r"wait = false \(--no-wait\) is for mode"),
    ],
)
def test_batch_mode_says_what_it_does_not_go_with(tmp_path: Path, overrides: list[str], told: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "x"\n[questions]\nsource = "q.jsonl"\n')
    with pytest.raises(ConfigError, match=told):
        load_spec(path, overrides)


def test_batch_mode_needs_a_model_that_takes_batches(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('name = "x"\n[questions]\nsource = "q.jsonl"\n[evaluator]\nkind = "number"\n')
    with pytest.raises(ConfigError, match="no role has a model named openai/"):
        check_models(load_spec(path, ["run.mode=batch"]))


def check(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_models(load(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ('[model]\nmodel = "nonsense"\n', "roles.generator.model or model.model"),
        ('[model]\nmodel = "embedded"\n[roles.verifier]\nmodel = "nonsense"\n', "roles.verifier.model"),
        ('[model]\nmodel = "embedded"\n[evaluator]\nkind = "llm"\nmodel = "nonsense"\n', "evaluator.model"),
        (
            '[model]\nmodel = "openai/m"\n[roles.refiner]\nmodel = "embedded"\nfallbacks = ["nonsense"]\n',
            "roles.refiner.fallbacks",
        ),
    ],
)
def test_a_model_that_no_provider_knows_is_named_with_its_key(
    folder: Path, given: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    assert check(SMALLEST + given).startswith(f"{key}: model 'nonsense' names no provider that LiteLLM knows; write it")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('api_key_env = "NOT_SET_HERE"\n', "openai/m: api_key_env names NOT_SET_HERE, which is not set"),
        ('api_base = "http://127.0.0.1:9/v1"\nextra = {n = 2}\n', "openai/m: extra may not set n"),
    ],
)
def test_a_fault_that_is_not_in_the_name_of_a_model_is_placed_in_its_role_s_table(
    folder: Path, given: str, said: str
) -> None:
    same = '[model]\nmodel = "openai/m"\napi_base = "http://127.0.0.1:9/v1"\n'
    assert check(f"{SMALLEST}{same}[roles.verifier]\n{given}").startswith(f"roles.verifier: {said}")


def test_a_model_version_that_is_missing_is_named_with_its_key(folder: Path) -> None:
    said = check(f'{SMALLEST}[model]\nmodel = "embedded"\n[roles.verifier]\nmodel = "none@v3"\n')
    assert said.startswith("roles.verifier.model: model 'none@v3': no model 'none' in ")


SHARED = """
[model]
model = "openai/gpt-x"
api_base = "http://127.0.0.1:8000/v1"
api_key_env = "MY_KEY"
temperature = 0.7
max_tokens = 99
"""


def test_the_shared_model_table_applies_to_every_role(folder: Path) -> None:
    spec = load(f'{SMALLEST}{SHARED}[evaluator]\nkind = "llm"\n[roles.verifier]\ntemperature = 0\n')
    players = [spec.roles.generator, spec.roles.verifier, spec.roles.refiner]
    asked = {(model.model, model.api_base, model.api_key_env) for model in (*players, spec.evaluator)}
    assert asked == {("openai/gpt-x", "http://127.0.0.1:8000/v1", "MY_KEY")}
    assert [(player.temperature, player.max_tokens) for player in players] == [(0.7, 99), (0, 99), (0.7, 99)]
    assert (spec.evaluator.temperature, spec.evaluator.max_tokens) == (0.1, 1024)
    assert spec.model is None


@pytest.mark.parametrize("own", ['model = "anthropic/claude"', 'api_base = "http://10.0.0.1/v1"'])
def test_a_role_that_is_elsewhere_takes_neither_address_nor_key(folder: Path, own: str) -> None:
    refiner = load(f"{SMALLEST}{SHARED}\n[roles.refiner]\n{own}\n").roles.refiner
    assert refiner.api_key_env is None
    assert refiner.api_base in (None, "http://10.0.0.1/v1")
    assert refiner.temperature == 0.7


def test_a_fault_in_the_shared_model_is_reported_once(folder: Path) -> None:
    said = refusal(SMALLEST + SHARED.replace("0.7", "9"))
    assert said == "configs/sums.toml: model.temperature = 9: must be less than or equal to 2"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            '[roles.generator]\nmodel = "openai/m"',
            "roles.verifier.model: missing, while roles.generator names 'openai/m'",
        ),
        ('[evaluator]\nkind = "llm"', "evaluator.model: missing for the judge; name one there, or in [model]"),
    ],
)
def test_no_role_is_played_by_the_default_beside_models_that_were_chosen(folder: Path, given: str, said: str) -> None:
    assert said in refusal(f"{SMALLEST}{given}\n")


@pytest.mark.parametrize("table", ["model", "roles.generator", "evaluator"])
def test_an_address_without_a_scheme_is_refused_in_one_sentence(folder: Path, table: str) -> None:
    said = refusal(f'{SMALLEST}[{table}]\nmodel = "openai/m"\napi_base = "127.0.0.1:8000/v1"\n')
    assert said.splitlines()[0] == (
        f"configs/sums.toml: {table}.api_base: '127.0.0.1:8000/v1' is no address; write http://HOST:PORT/v1, or https://…"
    )


@pytest.mark.parametrize(
    "address",
    ["http://[::1", "http://", "http://h:99999/v1", "http://h:x/v1", "http://h h/v1", "http://h/v1\x1b[2J", "//h"],
)
def test_half_an_address_is_refused(folder: Path, address: str) -> None:
    text = json.dumps(address)
    for table in ("[model]", "[roles.generator]", "[[roles.generator.fallbacks]]", "[evaluate.systems.one.generator]"):
        said = refusal(f'{SMALLEST}{table}\nmodel = "openai/m"\napi_base = {text}\n').splitlines()[0]
        assert "is no address; write http://HOST:PORT/v1" in said


def test_a_number_of_many_digits_is_refused(folder: Path) -> None:
    assert "not TOML that can be read" in refusal(f"{SMALLEST}[credit]\nthreshold = {'9' * 100_000}\n")
    assert refusal(SMALLEST, [f"credit.threshold={'9' * 100_000}"]).startswith("--set credit.threshold")
