"""response_format: answers that must be JSON, or follow a schema. Forms are built beside the loop, one at a time."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jielong.errors import UsageError
from jielong.generate.automaton import Automaton, Constraint, TokenBytes
from jielong.generate.json_form import json_automaton
from jielong.serve.engine_thread import Loaded
from jielong.serve.errors import bad_request
from jielong.serve.schema import ChatBody

MOST_KEPT = 16
MOST_SCHEMA_CHARACTERS = 50_000
_WHERE = "response_format"


@dataclass(frozen=True)
class _Form:
    automaton: Automaton
    masks: dict[int, Tensor] = field(default_factory=dict)  # touched by the engine's thread only


class Forms:
    """The forms of one model, whose tokens they are about; those used last are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Form] = OrderedDict()
        self._building = asyncio.Lock()
        self._tokens: TokenBytes | None = None

    async def constraints(self, body: ChatBody, loaded: Loaded) -> list[Constraint | None]:
        """One for each answer that the body asks for; None where any text will do.

        Raises ApiError 400 for a schema that is not supported, or beside what cannot be had with one.
        """
        number, form = body.n or 1, body.response_format
        if form is None or form.type == "text":
            return [None] * number
        if form.type == "json_schema" and form.json_schema is None:
            raise bad_request(
                "response_format.json_schema is required for the type json_schema", f"{_WHERE}.json_schema"
            )
        stop_ids = loaded.tokenizer.stop_ids
        if body.ignore_eos or body.min_tokens or body.stop_token_ids or not stop_ids:
            raise bad_request("ignore_eos, min_tokens and stop_token_ids cannot be had with a response_format", _WHERE)
        schema = form.json_schema.schema_ if form.json_schema is not None and form.type == "json_schema" else None
        found = await self._form(schema, loaded)
        assert self._tokens is not None
        return [Constraint(found.automaton, self._tokens, stop_ids, found.masks) for _ in range(number)]

    async def _form(self, schema: Mapping[str, Any] | None, loaded: Loaded) -> _Form:
        key = json.dumps(schema)  # not sorted: the order of the properties counts
        if len(key) > MOST_SCHEMA_CHARACTERS:
            raise bad_request(f"the schema is longer than {MOST_SCHEMA_CHARACTERS} characters", _WHERE)
        async with self._building:
            if key not in self._kept:
                loop = asyncio.get_running_loop()
                try:
                    self._kept[key] = _Form(await loop.run_in_executor(None, json_automaton, schema))
                except UsageError as error:
                    raise bad_request(str(error), f"{_WHERE}.json_schema.schema") from None
                if self._tokens is None:
                    self._tokens = await loop.run_in_executor(None, TokenBytes, loaded.tokenizer)
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
