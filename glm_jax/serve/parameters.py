"""The bodies of requests: OpenAI's fields, and a few more that vLLM made usual."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Id = Annotated[int, Field(ge=0, strict=True)]
MOST_STOP_TEXTS = 16
_UNUSED = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}
"""Fields that would change the answer if they were read, and the values that change nothing."""


class StreamOptions(BaseModel):
    include_usage: bool = False


class Common(BaseModel):
    """What both kinds of requests take. Other fields are passed over, except those that would
    change the answer: they are refused, not forgotten."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: list[str] = []
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    stop_token_ids: list[Id] = Field([], max_length=8)
    ignore_eos: bool = False
    """Goes on after the ids that end an answer."""

    @field_validator("stream", "n", "stop_token_ids", "ignore_eos", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stop_texts(cls, value: list[str]) -> list[str]:
        if len(value) > MOST_STOP_TEXTS or any(not 0 < len(text) <= 1000 for text in value):
            raise ValueError(f"at most {MOST_STOP_TEXTS} texts of 1 to 1000 characters")
        return value

    @model_validator(mode="after")
    def _nothing_forgotten(self):
        given = self.model_extra or {}
        for name, harmless in _UNUSED.items():
            if name in given and given[name] not in harmless:
                raise ValueError(f"{name} is not supported here; leave it out")
        return self


class ChatRequest(Common):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common):
    prompt: str | list[Id] | list[str] | list[list[Id]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def prompts(self) -> list[str | list[int]]:
        several = isinstance(self.prompt, list) and not isinstance((self.prompt or [0])[0], int)
        return list(self.prompt) if several else [self.prompt]  # pyrefly: ignore
