"""URIs in settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from shardmean.model.storage.filesystem import absolute

Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(absolute)]
