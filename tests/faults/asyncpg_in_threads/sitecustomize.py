"""Lets the MLflow server use PostgreSQL through asyncpg, the only PostgreSQL driver installed (with Prefect).

Python imports this module when the server starts. SQLAlchemy's blocking mode for asyncpg needs an event loop in every
thread, and asyncpg needs integers where MLflow passes strings of digits, as other drivers allow.
"""

import asyncio

from sqlalchemy.dialects.postgresql import asyncpg


class _LoopPerThread(asyncio.DefaultEventLoopPolicy):
    def get_event_loop(self) -> asyncio.AbstractEventLoop:
        try:
            return super().get_event_loop()
        except RuntimeError:
            self.set_event_loop(self.new_event_loop())
            return super().get_event_loop()


asyncio.set_event_loop_policy(_LoopPerThread())
for _kind in (asyncpg.AsyncpgInteger, asyncpg.AsyncpgBigInteger):
    _kind.bind_processor = lambda self, dialect: lambda value: None if value is None else int(value)
