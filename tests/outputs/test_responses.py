"""Responses on disk: ids are taken as they are, texts tokenised once, and nothing malformed passed over."""

import json

import pytest

from ckptlin.errors import InputError
from ckptlin.outputs.responses import Response, ResponseFile, read_responses


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def response(problem="p", number=0, ids=(4, 1)):
    return Response(problem, number, (2, 3), ids, "four\n", True, 7)


@pytest.fixture(scope="module")
def tokenizer(run):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(run / "checkpoint-0")


def test_what_was_written_is_read_again_without_a_tokenizer(tmp_path):
    path = tmp_path / "r.jsonl"
    with ResponseFile(path) as file:
        file.append([response(), response(number=1, ids=(5,))])
    found = read_responses(path)
    assert found.names == (("p", 0), ("p", 1))
    assert [probe.token_ids.tolist() for probe in found.probes] == [[4, 1], [5]]
    assert [probe.prompt_ids.tolist() for probe in found.probes] == [[2, 3]] * 2
    assert found.probes[0].prompt_ids is found.probes[1].prompt_ids
    assert not found.tokenized_here
    assert (found.num_tokens, found.longest) == (3, 4)


def test_a_file_cut_off_anywhere_goes_on(tmp_path):
    path = tmp_path / "r.jsonl"
    both = [response(), response(number=1)]
    with ResponseFile(path) as file:
        file.append(both)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with ResponseFile(path) as file:
            file.append(both[len(file.done) :])
            assert file.done == {("p", 0), ("p", 1)}
        assert path.read_bytes() == whole


def test_texts_are_tokenised_by_the_models_tokenizer(tmp_path, tokenizer):
    path = write(
        tmp_path / "r.jsonl",
        {"prompt": "ab", "response": "cd"},
        {"id": "x", "messages": [{"role": "user", "content": "abc"}], "response": "d"},
        {"id": "x", "messages": [{"role": "user", "content": "abc"}], "response": "e"},
    )
    found = read_responses(path, tokenizer=tokenizer)
    assert found.tokenized_here
    # Letters are tokens 2, 3, 4, ...; the chat template of this tokenizer adds nothing.
    assert [probe.prompt_ids.tolist() for probe in found.probes] == [[2, 3], [2, 3, 4], [2, 3, 4]]
    assert [probe.token_ids.tolist() for probe in found.probes] == [[4, 5], [5], [6]]
    assert found.names == (("0", 0), ("x", 0), ("x", 1))


def test_the_digest_is_of_what_is_scored(tmp_path):
    def digest(*responses):
        path = tmp_path / "d.jsonl"
        path.unlink(missing_ok=True)
        with ResponseFile(path) as file:
            file.append(responses)
        return read_responses(path).digest

    first = digest(response())
    assert first == digest(response())
    others = [digest(response(ids=(4, 2))), digest(response("q")), digest(response(), response(number=1))]
    assert len({first, *others}) == 4


IDS = {"prompt_ids": [1], "token_ids": [2]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["{"], "line 1 of .* is no response"),
        ([[]], "line 1 of .* is no response"),
        ([IDS | {"id": "a"}, {"prompt_ids": [1]}], "line 2 of .* is no response .*token_ids"),
        ([IDS | {"token_ids": []}], "its response has no tokens"),
        ([IDS | {"prompt_ids": []}], "its prompt has no tokens"),
        ([IDS | {"token_ids": [-1]}], "-1 is no token id"),
        ([IDS | {"token_ids": [1.5]}], "1.5 is no token id"),
        ([IDS | {"token_ids": [True]}], "True is no token id"),
        ([IDS | {"token_ids": [1 << 40]}], "is no token id"),
        (
            [IDS | {"id": "a", "sample": 0}, IDS | {"id": "a", "sample": 0}],
            "line 2 of .* is response 0 .*again",
        ),
        ([IDS, {"prompt": "a", "response": "b"}], "line 2 of .* has texts, unlike those before"),
        ([{"prompt": "a", "messages": [], "response": "b"}], "either prompt or messages"),
        ([{"response": "b"}], "either prompt or messages"),
        ([{"prompt": "a", "response": ""}], "its response has no tokens"),
        ([{"prompt": "a", "response": 3}], "3 is no str"),
        ([], "holds no response"),
    ],
)
def test_what_is_malformed_is_named(rows, message, tmp_path, tokenizer):
    with pytest.raises(InputError, match=message):
        read_responses(write(tmp_path / "r.jsonl", *rows), tokenizer=tokenizer)


def test_texts_need_a_tokenizer_and_messages_a_template(tmp_path, tokenizer):
    path = write(tmp_path / "r.jsonl", {"messages": [{"role": "user", "content": "a"}], "response": "b"})
    with pytest.raises(InputError, match="the model has no tokenizer"):
        read_responses(path)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(InputError, match="has no chat template"):
            read_responses(path, tokenizer=tokenizer)
    finally:
        tokenizer.chat_template = template
    with pytest.raises(InputError, match="there is no file"):
        read_responses(tmp_path / "nowhere.jsonl")


def test_the_same_response_twice_is_refused(tmp_path):
    path = write(tmp_path / "r.jsonl", response().to_dict(), response().to_dict())
    with pytest.raises(InputError, match="response 0 to problem p twice"):
        ResponseFile(path)
