"""What clients may send. Every number, text and list is bounded here, before anything else sees it.

Types are strict: true is no number, "1" is none, and NaN and infinity are none. Fields that are not listed are ignored,
for clients add new ones every month; a listed field that asks for what is not done here is refused, not ignored.
Names are those of OpenAI's API; top_k, min_p, repetition_penalty, min_tokens, ignore_eos, stop_token_ids and
return_token_ids are additions with the names of vLLM; beam and length_penalty are ours, for translators.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jielong.generate.beam import MOST_BEAMS

MOST_LOGPROBS = 20
LARGEST_ID = (1 << 31) - 1

TokenId = Annotated[int, Field(ge=0, le=LARGEST_ID)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=1 << 20)]
Text = Annotated[str, Field(max_length=1 << 21)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Prompt = (
    Text
    | TokenIds
    | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=2048)]
)
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None


class SamplingBody(Body):
    """What completions and chats have in common. null is as good as left out."""

    model: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="One of /v1/models; the first of them when left out."
    )
    n: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Answers to each prompt; 1.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0: the likeliest token; 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=LARGEST_ID)] | None = Field(None, description="0 and -1: all tokens.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[BiasId, Bias], Field(max_length=1024)] | None = Field(
        None, description="Token id, as text, to what is added to its score."
    )
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = Field(
        None, description="Chosen when left out."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    beam: Annotated[int, Field(ge=1, le=MOST_BEAMS)] | None = Field(
        None, description="Translators only: how many beginnings are kept at each step; 4, or 1 where tokens are drawn."
    )
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = Field(
        None, description="Translators only: above 0 favours longer translations; 0.6."
    )
    ignore_eos: bool | None = Field(None, description="Go on behind the end of a text or turn.")
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST_ID)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST_ID)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @model_validator(mode="after")
    def _streams_if_it_has_options(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream = true only")
        return self


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Prompt = Field(description="A text, ids, or a list of either.")
    echo: bool | None = Field(None, description="Put the prompt before the completion; with logprobs: score it.")
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Must equal n.")
    suffix: Annotated[str, Field(max_length=0)] | None = Field(None, description="Not supported: must be empty.")

    @model_validator(mode="after")
    def _ranks_nothing(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is {self.best_of}: must equal n, answers are not ranked here")
        return self


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn. role "developer" counts as "system"."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]


class JsonSchema(Body):
    name: Annotated[str, Field(max_length=64)] = "answer"
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=0, le=LARGEST_ID)] | None = Field(
        None, description="Wins over max_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none", "auto"] | None = Field(None, description="Tools are never called.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @model_validator(mode="after")
    def _asks_for_what_it_ranks(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs = true only")
        return self


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    input: Prompt = Field(description="A text, ids, or a list of either.")
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = Field(None, description="Must be the model's width.")


class TokenizeBody(Body):
    """POST /tokenize: a text, or a conversation."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(
        None, description="With prompt: put begin and end of a text around it; true."
    )
    add_generation_prompt: bool | None = Field(None, description="With messages: end where the assistant speaks; true.")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _has_one(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=1000)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=1 << 20)]
