"""Prompts as a model reads them, and answers as it wrote them."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ckptlin.demo import base_model
from ckptlin.errors import InputError
from ckptlin.evaluate.prompts import ModelText
from ckptlin.problems import Problem, get_template

VOCABULARY = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, ",": 4, "!": 5, "=": 6, "<unk>": 7}
PLAIN = get_template("plain")


def save_model(directory, *, ends=(), template=None, generation=None, config=None, **options):
    """Save a directory with a tokenizer of words; the weights do not matter here."""
    shutil.copytree(base_model(), directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).unlink()
    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.WordPiece(cleanup=False)
    if ends:
        special = [(token, VOCABULARY[token]) for token in ("<s>", "</s>")]
        words.post_processor = processors.TemplateProcessing(single=" ".join(ends), special_tokens=special)
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    ).save_pretrained(directory)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    path = directory / "config.json"
    own = {"model_type": "llama", "eos_token_id": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | own | (config or {})))
    return ModelText(directory)


def encoded(text, problem, template=PLAIN):
    return text.encode([Problem(problem, id="p")], template)[0]


def test_a_prompt_begins_as_the_tokenizer_begins_texts_and_does_not_end(tmp_path):
    text = save_model(tmp_path / "m", ends=("<s>", "$A", "</s>"))
    assert encoded(text, "a b") == (0, 2, 3)
    # Who writes the beginning himself does not get two.
    assert encoded(text, "<s> a b") == (0, 2, 3)
    # What the prompt itself says stays.
    assert encoded(text, "a </s>")[-1] == 1


def test_a_chat_prompt_is_what_the_template_makes_of_it(tmp_path):
    template = (
        "<s> {% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    text = save_model(tmp_path / "m", ends=("<s>", "$A", "</s>"), template=template)
    assert encoded(text, "a b", get_template("{problem}", chat=True)) == (0, 2, 3, 6)


def test_a_chat_template_that_refuses_is_told_in_a_sentence(tmp_path):
    text = save_model(tmp_path / "m", template="{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match=r"prompt of problem p cannot be encoded .*no system role"):
        encoded(text, "a", get_template("{problem}", chat=True))


def test_what_is_no_unicode_is_told_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="prompt of problem p cannot be encoded"):
        encoded(save_model(tmp_path / "m"), "a \ud800")


def test_answers_are_decoded_as_they_were_written(tmp_path):
    text = save_model(tmp_path / "m", clean_up_tokenization_spaces=True)
    assert text.decode([(2, 4, 3, 5, 1)]) == ["a , b !"]


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        (None, {}, (1,)),
        (None, {"eos_token_id": [1, 5]}, (1, 5)),
        ({"eos_token_id": 4}, {"eos_token_id": [1, 5]}, (1, 4)),
        ({"eos_token_id": [4, 5]}, {}, (1, 4, 5)),
    ],
)
def test_an_answer_ends_where_transformers_would_end_it(tmp_path, generation, config, ends):
    assert save_model(tmp_path / "m", generation=generation, config=config).stop_ids == ends


def test_the_fingerprint_is_of_all_that_prompts_depend_on(tmp_path):
    first = save_model(tmp_path / "a").fingerprint
    assert save_model(tmp_path / "b").fingerprint == first
    others = [
        save_model(tmp_path / "c", ends=("<s>", "$A")).fingerprint,
        save_model(tmp_path / "d", template="{{ messages }}").fingerprint,
    ]
    assert len({first, *others}) == 3
