"""TRL's trainers load the published Parquet files unchanged: one step of each, on a tiny random model."""

from pathlib import Path

import pytest

from malt.config.roles import PLAYERS, Role
from malt.datasets.version.dataset_version import DatasetVersion
from tests.published import PROVENANCE, mixed_tree, publish, spec_of

WHY = "the extra `train` is not installed (pip install -e '.[train]')"
torch = pytest.importorskip("torch", reason=WHY)
trl = pytest.importorskip("trl", reason=WHY)
datasets = pytest.importorskip("datasets", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

pytestmark = pytest.mark.filterwarnings("ignore")

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> DatasetVersion:
    """Version with pairs for every role, the generator too."""
    trees = [mixed_tree(f"q{number}") for number in range(2)]
    return publish(trees, spec_of(generator_dpo=True), PROVENANCE, tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a model with random weights and a tokenizer of one token a byte, which trainers load like any other."""
    folder = tmp_path_factory.mktemp("model")
    tokens = save_tokenizer(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    config = transformers.LlamaConfig(vocab_size=tokens, **sizes, **ids)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def save_tokenizer(folder: Path) -> int:
    """Save the tokenizer; return the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", "<pad>", *alphabet])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, chat_template=CHAT_TEMPLATE, **special)
    fast.save_pretrained(folder)
    return len(vocabulary)


def loss_of_one_step(kind: str, version: DatasetVersion, config: str, model: str, folder: Path) -> float:
    """Train one step with `{kind}Trainer` on one config's rows."""
    rows = datasets.load_dataset(str(version.path), config, split="train", cache_dir=str(folder / "cache"))
    args = getattr(trl, f"{kind}Config")(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = getattr(trl, f"{kind}Trainer")(model=model, args=args, train_dataset=rows)
    loss: float = trainer.train().training_loss
    return loss


@pytest.mark.parametrize("kind", ["SFT", "DPO", "KTO"])
@pytest.mark.parametrize("role", PLAYERS)
def test_each_trainer_takes_the_rows_of_its_kind(
    version: DatasetVersion, kind: str, role: Role, model: str, tmp_path: Path
) -> None:
    assert loss_of_one_step(kind, version, f"{kind.lower()}-{role}", model, tmp_path) > 0
