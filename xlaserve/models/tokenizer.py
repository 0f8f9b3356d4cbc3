"""Text to token ids and back, whole or token by token, and chats to prompts.

Wraps a `tokenizers.Tokenizer` with what Hugging Face keeps beside it: special tokens, chat templates, and whether a beginning-of-sequence
token is added. transformers is imported only for a model that comes without `tokenizer.json`.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, cast

import tokenizers
from tokenizers import AddedToken

from xlaserve.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from xlaserve.models.chat_template import ChatTemplate

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_FILE = "tokenizer.json"
_CONVERTED_FILES = ("tokenizer.model", "vocab.json", "tokenizer_config.json", "spiece.model")

_BYTE_TOKEN_LENGTH = len("<0x00>")


class Tokenizer:
    """The tokenizer of one model. Safe to use from several threads.

    Attributes:
        vocab_size: number of token ids, added tokens included.
        bos_token_id: the beginning-of-sequence token, or None.
        chat_template: source of the default chat template, or None.
        chat_templates: sources of all chat templates by name.
        special_tokens: texts of the tokens that are left out where special tokens are skipped.
        named_tokens: `bos_token`, `eos_token` and so on to their text.

    Args:
        backend: the tokenizer proper.
        special_tokens: `bos_token`, `eos_token` and so on to their text; what chat templates see under those names.
        chat_templates: template sources by name; "default" and, where the model has one for tools, "tool_use".

    Raises:
        UnsupportedModelError: the backend's decoder is neither byte-level nor SentencePiece with byte fallback.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.named_tokens: Mapping[str, str] = dict(special_tokens or {})
        self.chat_templates: Mapping[str, str] = dict(chat_templates or {})
        self._templates = {name: ChatTemplate(source) for name, source in self.chat_templates.items()}
        special = {index: token.content for index, token in backend.get_added_tokens_decoder().items() if token.special}
        self._special_ids = frozenset(special)
        self.special_tokens = tuple(special.values())
        self._bytes: dict[int, bytes] = {}
        self._byte_level = _is_byte_level(backend)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        bos = self.named_tokens.get("bos_token")
        self.bos_token_id: int | None = None if bos is None else backend.token_to_id(bos)
        default = self._templates.get("default")
        self.chat_template: str | None = None if default is None else default.source

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text. Special tokens written out in it become those tokens.
            add_special_tokens: add what the model wants around a text (a beginning-of-sequence token). Pass False for `render_chat`'s
                result, which has them already.

        Raises:
            InvalidRequestError: the text holds half a surrogate pair, which is no character.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidRequestError(
                "The prompt must be text that can be written as UTF-8; it holds a lone surrogate.", field="prompt"
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that the vocabulary lacks have none, and bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> TokenStream:
        """Begin decoding one generation token by token."""
        return TokenStream(self, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to the text, special tokens included; no bytes for an id that the vocabulary lacks."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._backend.id_to_token(token_id) if token_id >= 0 else None
            known = b"" if token is None else _byte_level_bytes(token) if self._byte_level else _sentencepiece_bytes(token)
            self._bytes[token_id] = known
        return known

    def token_name(self, token_id: int) -> str:
        """How the vocabulary itself spells a token, such as "Ġthe"; empty for an id that it lacks."""
        return self._backend.id_to_token(token_id) or "" if token_id >= 0 else ""

    @property
    def special_ids(self) -> dict[str, int]:
        """The ids of `special_tokens`, by their texts."""
        return {token: index for token in self.special_tokens if (index := self._backend.token_to_id(token)) is not None}

    def to_json(self) -> str:
        """What a tokenizer.json would hold, tokens that were added included."""
        return self._backend.to_str()

    def is_special(self, token_id: int) -> bool:
        """Whether a token is left out of the text when special tokens are skipped."""
        return token_id in self._special_ids

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> str:
        """The prompt for a conversation. Encode it with `add_special_tokens=False`: the template has written them.

        Args: as for `ChatTemplate.render`; `template_kwargs` are further names that the template can read, and `chat_template` is the
            source of another template than the model's.

        Raises:
            InvalidRequestError: the model has no chat template, or the template does not accept the messages.
        """
        template = _given_template(chat_template) if chat_template is not None else None
        if template is None and tools:
            template = self._templates.get("tool_use")
        template = template or self._templates.get("default")
        if template is None:
            raise InvalidRequestError(
                "This model has no chat template, so it cannot answer messages: send a plain prompt to /v1/completions (or LLM.generate).",
                field="messages",
            )
        return template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self.named_tokens, **(template_kwargs or {})},
        )


class TokenStream:
    """The text of one generation, piece by piece: each piece ends at a whole character.

    Bytes that cannot become a character are given as U+FFFD as soon as that is known. A generation continues its prompt, so a leading
    space of the first token stays, where `decode` of a SentencePiece model drops it.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token_id: int) -> str:
        """The text that one more token completes: "" for half a character and for a skipped special token."""
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is held back at the end of the generation: U+FFFD for the half of a character, else ""."""
        return self._decoder.decode(b"", final=True)


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """Read the tokenizer of a Hugging Face model directory.

    Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja (with chat_templates/*.jinja). Where there
    is no tokenizer.json, transformers converts what there is. What `encode` adds around a text is what the post-processor in tokenizer.json
    says: as in transformers 5, `add_bos_token` in tokenizer_config.json does not override it.

    Raises:
        CheckpointError: there is no tokenizer, or one of its files is damaged.
        UnsupportedModelError: the tokenizer is of a kind that cannot be streamed.
    """
    config = _read_json(directory / "tokenizer_config.json")
    special: dict[str, str] = {}
    for source in (_read_json(directory / "special_tokens_map.json"), config):
        for name in SPECIAL_NAMES:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                special[name] = text
    path = directory / _FILE
    if path.is_file():
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises its own bare Exception
            raise CheckpointError(f"{path}: is not a readable tokenizer: {error}.") from error
        _add_missing_tokens(backend, config, path)
    else:
        backend, special = _through_transformers(directory)
    return Tokenizer(backend, special_tokens=special, chat_templates=_read_templates(directory, config))


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has any file that `tokenizer_from_directory` would make a tokenizer of."""
    return any((directory / name).is_file() for name in (_FILE, *_CONVERTED_FILES))


@lru_cache(maxsize=16)
def _given_template(source: str) -> ChatTemplate:
    return ChatTemplate(source)


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], path: Path) -> None:
    """Add the tokens that only tokenizer_config.json knows, each at the id that it names."""
    declared = config.get("added_tokens_decoder")
    if not isinstance(declared, dict):
        return
    known = backend.get_added_tokens_decoder()
    for key, value in sorted(declared.items(), key=lambda item: int(item[0])):
        if int(key) in known or not isinstance(value, dict):
            continue
        flags = {name: bool(value.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        content = value["content"]
        backend.add_tokens([AddedToken(content, **flags)])
        if (actual := backend.token_to_id(content)) != int(key):
            raise CheckpointError(
                f"{path}: tokenizer_config.json gives the added token {content!r} the id {key}, but the vocabulary has it at {actual}."
            )


class _Slow(Protocol):
    """What is used of a transformers tokenizer."""

    special_tokens_map: dict[str, Any]
    backend_tokenizer: tokenizers.Tokenizer


def _through_transformers(directory: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    if not has_tokenizer(directory):
        raise CheckpointError(f"{directory}: holds no tokenizer: neither tokenizer.json nor tokenizer.model.")
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        slow = cast(_Slow, AutoTokenizer.from_pretrained(str(directory), local_files_only=True))
        backend = slow.backend_tokenizer
    except Exception as error:  # any of the many ways in which a conversion fails
        raise CheckpointError(
            f"{directory}: there is no tokenizer.json, and transformers cannot convert what there is: {type(error).__name__}: {error}."
        ) from error
    return backend, {name: str(value) for name, value in slow.special_tokens_map.items() if name in SPECIAL_NAMES}


def _read_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. Files of their own win over tokenizer_config.json, as in transformers."""
    templates: dict[str, str] = {}
    stored = config.get("chat_template")
    if isinstance(stored, str):
        templates["default"] = stored
    elif isinstance(stored, list):
        templates = {
            entry["name"]: entry["template"] for entry in stored if isinstance(entry, dict) and {"name", "template"} <= entry.keys()
        }
    files = {path.stem: path for path in sorted((directory / "chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        files["default"] = directory / "chat_template.jinja"
    elif not templates and isinstance(legacy := _read_json(directory / "chat_template.json").get("chat_template"), str):
        templates["default"] = legacy
    return templates | {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(content).__name__}.")
    return content


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """True for a byte-level decoder, False for a SentencePiece one."""
    decoder: Any = backend.decoder
    state: dict[str, Any] = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = {step["type"] for step in state.get("decoders", [state]) if "type" in step}
    if "ByteLevel" in steps:
        return True
    if steps & {"ByteFallback", "Metaspace"}:
        return False
    raise UnsupportedModelError(
        f"The tokenizer's decoder ({', '.join(sorted(steps)) or 'none'}) is not supported; "
        "byte-level (ByteLevel) and SentencePiece ones (ByteFallback, Metaspace) are."
    )


@cache
def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 stands for itself, the rest is moved to U+0100 and up."""
    own = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    moved = [byte for byte in range(256) if byte not in set(own)]
    return {chr(byte): byte for byte in own} | {chr(256 + index): byte for index, byte in enumerate(moved)}


def _byte_level_bytes(token: str) -> bytes:
    table = byte_characters()
    try:
        return bytes([table[character] for character in token])
    except KeyError:  # an added token is kept as plain text
        return token.encode("utf-8")


def _sentencepiece_bytes(token: str) -> bytes:
    if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass  # a token that merely looks like a byte
    return token.replace("▁", " ").encode("utf-8")
