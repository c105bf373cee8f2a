"""Ray's REST API of a RayCluster's head."""

from __future__ import annotations

import aiohttp

from pointsman_operator.pod_answer import MOST_BYTES, PodAnswerError, read_json, session_for_pods

_PATH = "/api/serve/applications/"


class RayError(Exception):
    """A head did not give its list of applications; the message says why.

    Args:
        message: why.
        unauthorized: the token is not the one that the cluster was started with.
    """

    def __init__(self, message: str, *, unauthorized: bool = False) -> None:
        super().__init__(message)
        self.unauthorized = unauthorized


class RayApi:
    """Asks Ray heads, over one pool of connections.

    Args:
        timeout_seconds: for one question, its whole answer included.
        most_bytes: longer answers are not read.
    """

    def __init__(self, *, timeout_seconds: float = 3.0, most_bytes: int = MOST_BYTES) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._most_bytes = most_bytes
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def fetch_applications(self, dashboard_url: str, token: str) -> object:
        """The document of ``GET /api/serve/applications/``.

        Raises:
            RayError: no answer in time, another one, or one that is too long.
        """
        if self._session is None:
            # Heads come and go: an idle connection to one is worth little, and costs a descriptor.
            connector = aiohttp.TCPConnector(limit=64, keepalive_timeout=15.0)
            self._session = session_for_pods(connector=connector, timeout=self._timeout)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        url = dashboard_url.rstrip("/") + _PATH
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status in (401, 403):
                    raise RayError(
                        f"{url}: {response.status}, the token is not the head's", unauthorized=True
                    )
                if response.status != 200:
                    raise RayError(f"{url}: status {response.status}")
                return await read_json(response, most_bytes=self._most_bytes)
        except PodAnswerError as error:
            raise RayError(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise RayError(f"{url}: {type(error).__name__} {error}".rstrip()) from error
