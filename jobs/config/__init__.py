"""Every setting of every job, as pydantic models, and what is said of a wrong one."""
