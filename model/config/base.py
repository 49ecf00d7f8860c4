"""What all settings share. Imports no torch.

Each field's docstring gives its meaning and unit; Airflow's trigger form and the JSON schema show it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of every config: unknown keys are errors, values never change after the check."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
