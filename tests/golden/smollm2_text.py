"""SmolLM2's tokenizer rebuilt from its GGUF file with the `tokenizers` package, and reference tokenizations and chat renderings."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.golden import prompts
from tests.golden.gguf_file import GGUFFile

_CONTROL = 3


def tokenizer(file: GGUFFile) -> Any:
    """A transformers tokenizer with the vocabulary, merges, special tokens and chat template of the file.

    The pre-tokenizer is that of the published `tokenizer.json` (llama.cpp calls it "smollm"): single digits, then GPT-2's rules.
    """
    meta = file.metadata
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise RuntimeError(f"{file.path}: not a SmolLM2 tokenizer")
    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges: list[tuple[str, str]] = []
    for merge in meta["tokenizer.ggml.merges"]:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    fast = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    kinds: list[int] = meta["tokenizer.ggml.token_type"]
    fast.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i, kind in enumerate(kinds) if kind == _CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=tokens[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[meta["tokenizer.ggml.eos_token_id"]],
        chat_template=meta["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def cases(file: GGUFFile) -> dict[str, Any]:
    """The content of `smollm2_text.json`: templates, renderings, tokenizations."""
    reference = tokenizer(file)
    templates = {"smollm2": file.metadata["tokenizer.chat_template"], "rich": prompts.RICH_TEMPLATE}
    renderings: list[dict[str, Any]] = []

    def render(template: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, generate: bool, go_on: bool) -> None:
        rendered = reference.apply_chat_template(
            messages,
            tools=tools,
            chat_template=templates[template],
            tokenize=False,
            add_generation_prompt=generate,
            continue_final_message=go_on,
        )
        renderings.append(
            {
                "template": template,
                "messages": messages,
                "tools": tools,
                "add_generation_prompt": generate,
                "continue_final_message": go_on,
                "rendered": rendered,
            }
        )

    for messages in prompts.RENDERINGS:
        render("smollm2", messages, None, True, False)
        render("smollm2", messages, None, False, False)
        if messages[-1]["role"] == "assistant":
            render("smollm2", messages, None, False, True)
    for messages, tools in prompts.RICH_RENDERINGS:
        render("rich", messages, tools, True, False)
        render("rich", messages, tools, False, False)

    tokenizations: list[dict[str, Any]] = []
    for text in prompts.TRICKY:
        ids: list[int] = reference.encode(text, add_special_tokens=False)
        tokenizations.append(
            {
                "text": text,
                "ids": ids,
                "decoded": reference.decode(ids),
                "decoded_without_special": reference.decode(ids, skip_special_tokens=True),
            }
        )
    return {
        "special_tokens": {"bos_token": reference.bos_token, "eos_token": reference.eos_token},
        "templates": templates,
        "renderings": renderings,
        "tokenizations": tokenizations,
    }
